"""Cells on a tiny random checkpoint and a dozen drawn scenes, through the real runner and store: a second each."""

from collections.abc import Mapping
from pathlib import Path

import tiny_models

from segbench import planning, runner
from segbench.library import Library
from segbench.store import Store

TRAIN, VAL, SIZE, GRID = 8, 4, (48, 72), (6, 6)
PATCH = (SIZE[0] // GRID[0], SIZE[1] // GRID[1])  # original pixels
DATA = f"{{name: scenes, seed: 5, train: {TRAIN}, val: {VAL}, size: [{SIZE[0]}, {SIZE[1]}]}}"
PROBE = f"""
kind: probe
data: {DATA}
protocol: {{epochs: 4, batch: 4, lr: 3e-2}}
"""
OPTIONS = planning.Options(batch_size=3, device="cpu")


class Silent:
    """A watcher that says nothing."""

    def started(self, item):
        pass

    def progress(self, images, total, what):
        pass

    def ended(self, outcome):
        pass


def lab(folder: Path, tasks: Mapping[str, str]) -> Path:
    """A folder for --include that holds the model `tiny` and these tasks."""
    for name in ("models", "tasks"):
        (folder / name).mkdir(parents=True)
    tiny_models.write(folder / "models/tiny")
    (folder / "models/tiny.yaml").write_text("adapter: llava\nweights: ./tiny\n")
    for name, text in tasks.items():
        (folder / f"tasks/{name}.yaml").write_text(text)
    return folder


def measure(folder: Path, tasks: str, output: Path, options=OPTIONS, watcher=None) -> dict[str, runner.Outcome]:
    """What becomes of every task of the lab, and of those it needs, by name."""
    library = Library([folder])
    items = planning.plan(library, library.models("tiny"), library.tasks(tasks), Store(output), options)
    return {outcome.item.task.name: outcome for outcome in runner.run(items, options, watcher or Silent())}


def contents(output: Path) -> dict[str, bytes]:
    """The files of a store by path, less what may differ between equal runs."""
    files = (path for path in output.rglob("*") if path.is_file() and path.name != "provenance.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}
