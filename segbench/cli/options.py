"""Options that several commands have, and what they mean."""

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench import strict_yaml
from segbench.errors import SpecError

if TYPE_CHECKING:
    from segbench.library import Library

RUNS = Path("segbench-runs")

Include = Annotated[
    list[Path] | None,
    typer.Option(exists=True, metavar="PATH", help="your own YAML files and modules: a folder or a file; repeatable"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="images per split; such cells never enter the leaderboard")]
ModelArgs = Annotated[
    str | None, typer.Option(metavar="KEY=VALUE,...", help="fields of the model cards to replace: weights, dtype ...")
]
Weights = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="folder with the checkpoint, in place of the one model's own"),
]
Preprocess = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="how an image is laid on the model's square: squash, pad, crop, native"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Seed = Annotated[str | None, typer.Option(metavar="N,...", help="of the probes, as 0,1,2, if not those of the task")]
Output = Annotated[Path, typer.Option(file_okay=False, help="folder of the cells, the leaderboard and its figures")]
Data = Annotated[
    Path | None,
    typer.Option(file_okay=False, envvar="SEGBENCH_DATA", help="folder of the published data sets"),
]
Figures = Annotated[bool, typer.Option(help="draw the pictures (needs matplotlib)")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="tell every cell, its state and its cost; measure nothing")]
Json = Annotated[bool, typer.Option("--json", help="data as JSON")]


def library(include: Sequence[Path] | None, data: Path | None = None) -> "Library":
    """All specs; the folders of the user's own can be imported from."""
    from segbench.library import Library

    for path in include or ():
        folder = str((path if path.is_dir() else path.parent).resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # behind everything installed: a data.py there shadows nothing
    return Library(tuple(include or ()), data)


def chosen(name: str, patterns: str | None) -> bool:
    """Whether names or patterns with commas name it; all where none is given."""
    return patterns is None or any(fnmatch.fnmatchcase(name, one.strip()) for one in patterns.split(","))


def overridden(text: str | None, weights: Path | None, preprocess: str | None) -> dict[str, Any]:
    """Fields of a card by `key=value,key=value`, values as in YAML, and the two that have options of their own."""
    overrides: dict[str, Any] = {}
    for part in filter(None, (text or "").split(",")):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise SpecError(f"--model-args: expected key=value with commas between, got {part!r}")
        overrides[key.strip().replace("-", "_")] = strict_yaml.scalar(value.strip())
    for key, given in (("weights", weights), ("preprocess", preprocess)):
        if given is not None and key in overrides:
            raise SpecError(f"--{key} and --model-args {key}=... are both given; keep one")
        if given is not None:
            overrides[key] = str(given)
    return overrides
