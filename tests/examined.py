"""What tests of the report on a model share: a checkpoint's report, its checks by name, a checkpoint to damage."""

import shutil
from pathlib import Path
from typing import Any

import tiny_models

from segbench.adapters import report
from segbench.adapters.report import Check, Report


def examine(folder: Path, **fields: Any) -> Report:
    return report.examine(tiny_models.spec(folder, **fields), "cpu", None, lambda line: None)


def named(found: Report) -> dict[str, Check]:
    return {one.name: one for one in found.checks}


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "checkpoint"))
