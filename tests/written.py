"""Specs from text that stands in a test, as if it were in a file of /cards."""

from pathlib import Path
from typing import Any

from segbench import strict_yaml
from segbench.specs import ModelSpec, TaskSpec, read_model, read_task

HERE = Path("/cards")


def model(text: str, overrides: dict[str, Any] | None = None) -> ModelSpec:
    return read_model(strict_yaml.parse(text, "m.yaml"), HERE / "m.yaml", overrides)


def task(text: str) -> TaskSpec:
    return read_task(strict_yaml.parse(text, "t.yaml"), HERE / "t.yaml")
