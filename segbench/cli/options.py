"""Options that several commands have, and what two of them mean."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from segbench.library import Library

RUNS = Path("segbench-runs")

Include = Annotated[
    list[Path] | None,
    typer.Option(exists=True, metavar="PATH", help="your own YAML files and modules: a folder or a file; repeatable"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="images per split; such cells never enter the leaderboard")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Seed = Annotated[str, typer.Option(help="of the probes: 0, or several as 0,1,2")]
Output = Annotated[Path, typer.Option(file_okay=False, help="folder of the cells, the leaderboard and its figures")]
Figures = Annotated[bool, typer.Option(help="draw the pictures (needs matplotlib)")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="tell every cell, its state and its cost; measure nothing")]
Json = Annotated[bool, typer.Option("--json", help="data as JSON")]


def library(include: Sequence[Path] | None) -> "Library":
    """All specs; the folders of the user's own can be imported from."""
    from segbench.library import Library

    for path in include or ():
        folder = str((path if path.is_dir() else path.parent).resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # behind everything installed: a data.py there shadows nothing
    return Library(tuple(include or ()))
