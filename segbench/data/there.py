"""Published data sets as they are found here: where, how much of each, and whether it was verified."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from segbench import registry
from segbench.data import checksums
from segbench.data.native import Native, Params, place
from segbench.errors import SegbenchError, SpecError
from segbench.files import cache_home
from segbench.specs import Split

SPLITS: tuple[Split, ...] = ("train", "val")


class There(NamedTuple):
    """What can be told of a data set without reading its images."""

    name: str
    title: str
    path: Path
    splits: Mapping[Split, tuple[int, int]]  # images that are there, and that were published
    problem: str | None
    verified: str | None  # date and time
    changed: int  # files that were not as they are when it was verified

    @property
    def state(self) -> str:
        """In words: absent, complete, or what there is of it."""
        if not self.path.is_dir():
            return "absent"
        if self.problem:
            return "incomplete" if self.splits else "not usable"
        parts = [f"{there:,} of {all_:,} {split}" for split, (there, all_) in self.splits.items()]
        return "complete" if self.complete else f"partial: {', '.join(parts)}"

    @property
    def complete(self) -> bool:
        """Whether all images of both splits are there."""
        return len(self.splits) == len(SPLITS) and all(there == all_ for there, all_ in self.splits.values())


def modules() -> dict[str, ModuleType]:
    """The published data sets, by name."""
    found = {name: registry.module("data", name) for name in registry.names("data")}
    return {name: one for name, one in found.items() if issubclass(one.Params, Params)}


def module(name: str) -> ModuleType:
    """The module of a published data set; SpecError for any other name."""
    known = modules()
    if name in registry.names("data") and name not in known:
        raise SpecError(
            f"{name!r} is no published data set: whatever reads it checks all of it; known: {', '.join(known)}"
        )
    if name not in known:
        raise SpecError(f"no data set {name!r}{registry.nearest(name, known)}")
    return known[name]


def there(name: str, home: Path, path: Path | None = None) -> There:
    """What is there of a data set below the data folder, or in a folder of its own."""
    chosen, splits, files, problem = params(name, home, path), dict[Split, tuple[int, int]](), list[Path](), None
    if chosen.path.is_dir():
        for split in SPLITS:
            try:
                dataset = open_split(name, chosen, split)
            except SegbenchError as error:
                problem = problem or str(error)
            else:
                splits[split] = (len(dataset), dataset.published or len(dataset))
                files += [file for pair in dataset.pairs for file in (pair.image, pair.mask)]
    made = _verified(chosen.path) if files else None
    changed = len(checksums.unread(chosen.path, files)) if made else 0
    return There(name, chosen.known.title, chosen.path, splits, problem, made, changed)


def params(name: str, home: Path, path: Path | None) -> Params:
    """A task's `data:` for what is there of a data set; SpecError for what is no published one."""
    found = module(name).Params
    return found(path=path or place(found.known, home), partial=True)


def open_split(name: str, chosen: Params, split: Split) -> Native:
    """A split in files; errors as in `native.split`."""
    found = module(name).load(chosen, split)
    assert isinstance(found, Native), "a folder was asked for, no copy on the hub"
    return found


def manifest_place(root: Path) -> Path:
    """Where the manifest of a verified folder is kept."""
    return cache_home() / "verified" / f"{checksums.folder_id(root)}.json"


def _verified(root: Path) -> str | None:
    """When the folder was found to be whole and as published; None where it was not."""
    try:
        made = json.loads(manifest_place(root).read_bytes())["made"]
        return str(made["date"]) if made["root"] == str(root.resolve()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
