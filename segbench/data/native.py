"""Published data sets in their own directory layouts: what all of them have in common.

A data set is one module with its layout and the meaning of its labels, and one file published/NAME.json with what
others have published of it: class names, images per split, archives, terms, label statistics. Its `Native` splits
refuse what is not complete, what was already treated, and what lies in train and val at once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from segbench.data import checksums
from segbench.data.facts import Published
from segbench.data.listing import Pair
from segbench.errors import DataError, MissingInput
from segbench.images import File, Labels, Mark, decode_pair, mask_values
from segbench.records import digest
from segbench.registry import nearest
from segbench.specs import Spec, Split
from segbench.types import Dataset, Sample

NATIVE_VERSION = 1  # part of every manifest: any change to what is read from the same files raises it
LOOKED_AT = 64  # masks of a split whose values are looked at before anything is measured

Some = TypeVar("Some")


class Params(Spec):
    """Keys that every published data set has."""

    known: ClassVar[Published]

    path: Path = Field(description="its folder; left out: looked for in the data folder (--data)")
    partial: bool = Field(default=False, description="take what is there of it; such cells never enter the leaderboard")
    hub: str | None = Field(default=None, description="ORG/NAME of a copy on the Hugging Face hub, instead of a folder")
    revision: str | None = Field(default=None, description="commit of that copy, 40 hexadecimal digits")

    @model_validator(mode="before")
    @classmethod
    def _find(cls, keys: Any, info: ValidationInfo) -> Any:
        if not isinstance(keys, Mapping) or "path" in keys:
            return keys
        return {**keys, "path": str(place(cls.known, (info.context or {}).get("data", Path())))}

    @model_validator(mode="before")
    @classmethod
    def _one_origin(cls, keys: Any) -> Any:
        if isinstance(keys, Mapping) and "hub" in keys and "path" in keys:
            raise ValueError("'path' and 'hub' are both given; keep one")
        return keys

    @model_validator(mode="after")
    def _known_copy(self) -> "Params":
        if self.revision is not None and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision: expected a commit of 40 hexadecimal digits (branches and tags move), got {self.revision!r}"
            )
        if self.hub is None:
            if self.revision is not None:
                raise ValueError("'revision' is a commit of the 'hub' copy, which is not given")
            return self
        copies = self.known.facts["hub"]
        if self.hub not in copies:
            raise ValueError(f"hub: no copy {self.hub!r} of {self.known.title}{nearest(self.hub, copies)}")
        if self.revision is None and copies[self.hub]["revision"] is None:
            raise ValueError(f"'hub' needs the 'revision' of {self.hub} that is meant, 40 hexadecimal digits")
        return self


def place(known: Published, home: Path) -> Path:
    """Where a data set lies below the data folder, or would be put."""
    own = home / known.name
    there = [path for path in (own / known.folder, own, home / known.folder) if path.is_dir()]
    return there[0] if there else own / known.folder


class Native(Dataset):
    """One split in files. Reads nothing before it is asked for a sample or its manifest."""

    def __init__(
        self,
        known: Published,
        labels: Labels,
        root: Path,
        pairs: Sequence[Pair],
        subsets: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.known, self.labels, self.root, self.pairs = known, labels, root, tuple(pairs)
        self.classes, self.subsets = known.classes, subsets
        clusters = [pair.cluster for pair in pairs]
        self.clusters = tuple(one for one in clusters if one is not None) or None

    @cached_property
    def manifest(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # reads every byte, once
        files = [path for pair in self.pairs for path in (pair.image, pair.mask)]
        sums = checksums.of(self.root, files)
        alike: dict[tuple[Mark, ...], list[Pair]] = {}
        for pair in self.pairs:
            alike.setdefault(self.labels.marks if pair.marks is None else pair.marks, []).append(pair)
        for marks, pairs in alike.items():
            masks = [File.of(pair.mask) for pair in evenly(pairs)]
            refuse_treated(self.known, replace(self.labels, marks=marks), masks, str(self.root))
        lines = [[pair.name, sums[pair.image], sums[pair.mask]] for pair in self.pairs]
        return digest({"native": NATIVE_VERSION, "set": self.known.name, "classes": self.classes, "files": lines})

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        return self.decode(pair, File.of(pair.image), File.of(pair.mask))

    def decode(self, pair: Pair, image: File, mask: File) -> Sample:
        """The sample that these bytes are."""
        # As stored where an EXIF tag leaves it open: so do the official tools of these data sets, which know no tags.
        return decode_pair(pair.name, image, mask, self.labels, "as stored")


def evenly(items: Sequence[Some]) -> Sequence[Some]:
    """At most LOOKED_AT of them, from all over."""
    return items[:: -(-len(items) // LOOKED_AT)] if items else items


def refuse_treated(known: Published, labels: Labels, masks: Sequence[File], place: str) -> None:
    """DataError if labels were shifted or filled before: a few masks of any split show what only untreated ones hold.

    What so few masks cannot show (two classes exchanged) is left to the label statistics of `segbench data verify`.
    """
    found = []
    for mask in masks:
        values = mask_values(mask)
        labels.ids(values, mask.name)
        found.append({int(value) for value in np.unique(values)})
    for mark in labels.marks:
        holding = sum(not mark.values.isdisjoint(values) for values in found)
        if holding < int(mark.share * len(found) + 0.5):
            raise DataError(
                f"{place}: {holding} of {len(found)} masks hold {_either(mark.values)}, but of {known.title} as"
                f" published at least {mark.share:.0%} do; its labels seem to have been shifted or filled already, and"
                f" must be as published ({known.page})"
            )


def split(
    params: Params,
    labels: Labels,
    pairs: Mapping[Split, Sequence[Pair]],
    wanted: Split,
    published: int,
    subsets: Mapping[str, tuple[int, ...]] | None = None,
    classes: Sequence[str] | None = None,
) -> Native:
    """The wanted one of both splits, complete unless `partial` allows less.

    MissingInput if images are not there, DataError if there are more than were published, or if one is in both splits.
    """
    known, found = params.known, pairs[wanted]
    if classes is not None:
        known = replace(known, classes=tuple(classes))
    if both := sorted({one.name for one in pairs["train"]} & {one.name for one in pairs["val"]}):
        raise DataError(f"{params.path}: {both[0]} and {len(both) - 1} more are in train and in val")
    complete(known, str(params.path), len(found), wanted, published, params.partial, f"segbench data get {known.name}")
    native = Native(known, labels, params.path, found, subsets or {})
    if len(found) < published:
        native.published = published
    return native


def complete(known: Published, place: str, found: int, split: Split, published: int, partial: bool, get: str) -> None:
    """DataError if there are more images than were published; MissingInput, with how to `get` them, if fewer."""
    if found > published:
        raise DataError(
            f"{place}: {found:,} {split} images, but {known.title} has {published:,}; take out what is not part of it"
        )
    if not found or (found < published and not partial):
        raise MissingInput(
            f"{place}: {found:,} of {published:,} {split} images of {known.title} are there; first: {get}"
            + (", or set `partial: true` in the task's data" if found else "")
        )


def _either(values: Iterable[int]) -> str:
    """Numbers in words: `0 or 11`, `one of 171..181`."""
    few = sorted(values)
    return " or ".join(map(str, few)) if len(few) < 4 else f"one of {few[0]}..{few[-1]}"
