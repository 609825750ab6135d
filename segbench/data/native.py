"""Published data sets in their own directory layouts: what all of them have in common.

A data set is one module with its layout and the meaning of its labels, and one file published/NAME.json with what
others have published of it: class names, images per split, archives, terms, label statistics. Its `Native` splits
refuse what is not complete, what was already treated, and what lies in train and val at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, model_validator

from segbench.data import checksums
from segbench.errors import DataError, MissingInput
from segbench.images import File, Labels, decode_pair, mask_values
from segbench.records import digest
from segbench.specs import Spec, Split
from segbench.types import Dataset, Sample

NATIVE_VERSION = 1  # part of every manifest: any change to what is read from the same files raises it
LOOKED_AT = 16  # masks of a split whose values are looked at before anything is measured


@dataclass(frozen=True)
class Archive:
    """A file to download and unpack into the data set's folder."""

    url: str
    hash: str  # md5:..., sha1:... or sha256:..., as others pin it
    bytes: int | None
    source: str  # who pins that hash
    into: str = ""  # the folder below the data set's that it is unpacked into


@dataclass(frozen=True)
class Published:
    """What is known of a data set before a byte of it is read."""

    name: str
    title: str
    page: str
    terms: str
    folder: str  # what it is called where it is unpacked
    classes: tuple[str, ...]
    images: Mapping[str, int]  # by published list of names
    archives: tuple[Archive, ...]  # none where a person must register or agree first
    wanted: tuple[str, ...]  # the archives or folders to get by hand, and where they go
    facts: Mapping[str, Any]  # all of the file

    @classmethod
    def read(cls, name: str) -> "Published":
        """What segbench/data/published/NAME.json says."""
        path = Path(__file__).parent / "published" / f"{name}.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            name=name,
            title=facts["title"],
            page=facts["page"],
            terms=facts["terms"],
            folder=facts["folder"],
            classes=tuple(facts["classes"]),
            images=facts["images"],
            archives=tuple(Archive(**one) for one in facts["archives"]),
            wanted=tuple(facts["wanted"]),
            facts=facts,
        )


class Params(Spec):
    """Keys that every published data set has."""

    known: ClassVar[Published]

    path: Path = Field(description="its folder; left out: looked for in the data folder (--data)")
    partial: bool = Field(default=False, description="take what is there of it; such cells never enter the leaderboard")

    @model_validator(mode="before")
    @classmethod
    def _find(cls, keys: Any, info: ValidationInfo) -> Any:
        if not isinstance(keys, Mapping) or "path" in keys:
            return keys
        return {**keys, "path": str(place(cls.known, (info.context or {}).get("data", Path())))}


def place(known: Published, home: Path) -> Path:
    """Where a data set lies below the data folder, or would be put."""
    own = home / known.name
    there = [path for path in (own / known.folder, own, home / known.folder) if path.is_dir()]
    return there[0] if there else own / known.folder


@dataclass(frozen=True)
class Pair:
    """A picture and its mask, by their files."""

    name: str
    image: Path
    mask: Path
    cluster: str | None = None


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
        self._refuse_treated()
        lines = [[pair.name, sums[pair.image], sums[pair.mask]] for pair in self.pairs]
        return digest({"native": NATIVE_VERSION, "set": self.known.name, "classes": self.classes, "files": lines})

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        # As stored where an EXIF tag leaves it open: so do the official tools of these data sets, which know no tags.
        return decode_pair(pair.name, File.of(pair.image), File.of(pair.mask), self.labels, "as stored")

    def _refuse_treated(self) -> None:
        """DataError if labels were shifted before: a few masks of any split show what only untreated files hold."""
        if not self.labels.marks:
            return
        some = self.pairs[:: -(-len(self.pairs) // LOOKED_AT)]
        for pair in some:
            values = mask_values(File.of(pair.mask))
            self.labels.ids(values, str(pair.mask))
            if self.labels.marks & set(values.flat):
                return
        marks = " or ".join(map(str, sorted(self.labels.marks)))
        raise DataError(
            f"{self.root}: none of {len(some)} masks holds {marks}, which nearly every one of {self.known.title} does;"
            f" its labels seem to have been shifted or filled already, and must be as published ({self.known.page})"
        )


def split(
    params: Params,
    labels: Labels,
    pairs: Mapping[Split, Sequence[Pair]],
    wanted: Split,
    published: int,
    subsets: Mapping[str, tuple[int, ...]] | None = None,
) -> Native:
    """The wanted one of both splits, complete unless `partial` allows less.

    MissingInput if images are not there, DataError if there are more than were published, or if one is in both splits.
    """
    known, found = params.known, pairs[wanted]
    if both := sorted({one.name for one in pairs["train"]} & {one.name for one in pairs["val"]}):
        raise DataError(f"{params.path}: {both[0]} and {len(both) - 1} more are in train and in val")
    if len(found) > published:
        raise DataError(
            f"{params.path}: {len(found):,} {wanted} images, but {known.title} has {published:,}; take out what is"
            " not part of it"
        )
    if not found or (len(found) < published and not params.partial):
        raise MissingInput(
            f"{params.path}: {len(found):,} of {published:,} {wanted} images of {known.title} are there; first:"
            f" segbench data get {known.name}" + (", or set `partial: true` in the task's data" if found else "")
        )
    native = Native(known, labels, params.path, found, subsets or {})
    if len(found) < published:
        native.published = published
    return native


def beside(images: Path, masks: Path, suffix: str = ".jpg") -> list[Pair]:
    """Pairs of the files `images/NAME.jpg` and `masks/NAME.png`, by name; MissingInput for what has no partner."""
    pictures = {path.stem: path for path in files(images, suffix)}
    truths = {path.stem: path for path in files(masks, ".png")}
    if alone := sorted(pictures.keys() ^ truths.keys()):
        there, absent = (images, masks) if alone[0] in pictures else (masks, images)
        raise MissingInput(
            f"{there}: {len(alone):,} files have no partner, the first is {alone[0]}, which is not in {absent}"
        )
    return [Pair(name, pictures[name], truths[name]) for name in sorted(pictures)]


def listed(path: Path) -> list[str]:
    """The names in a list file, one a line; MissingInput if it is not there, DataError for a strange name."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: there is no such list") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if odd := [name for name in names if ".." in Path(name).parts or "\\" in name or not name.isprintable()]:
        raise DataError(f"{path}: {odd[0]!r} is no name of an image")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: lists an image twice")
    return names


def files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder by that suffix, in order; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))
