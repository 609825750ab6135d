"""Whether a published data set is here, whole and as it was published: every file read, every label counted.

What is compared are the images of both splits with the published number, the labels of every class, as they are used
for training, with published statistics, and the checksums with those of an earlier reading. A set that passes gets a
manifest: all files with their checksums, kept in the user's cache and written wherever it is wanted.
"""

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from jaxtyping import Int64

import segbench
from segbench.data import checksums, label_statistics
from segbench.data.checksums import Sum
from segbench.data.listing import Pair
from segbench.data.native import NATIVE_VERSION, Native
from segbench.data.there import SPLITS, manifest_place, open_split, params
from segbench.errors import MissingInput, SegbenchError
from segbench.files import write_whole
from segbench.images import File, decode_mask
from segbench.records import canonical, digest
from segbench.specs import Split
from segbench.types import IGNORE

MANIFEST_VERSION = 1

Tell = Callable[[str, int, int | None], object]  # what is done, images so far, images in all


@dataclass(frozen=True)
class Contents:
    """What was found in one split."""

    images: int
    published: int
    manifest: str | None  # what enters the fingerprint of a cell; None where something is wrong
    pixels: Int64[np.ndarray, " k"]
    images_with: Int64[np.ndarray, " k"]  # images that hold the class
    ignored: int  # pixels
    compared: str  # what the labels were compared with, or why with nothing
    files: Mapping[str, tuple[int, str]]  # bytes and sha256 by path
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that was found, and all that is wrong."""

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[Split, Contents]
    problems: tuple[str, ...]
    seconds: float

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Bytes and sha256 of all files, by their path in the folder."""
        return {name: one for split in self.splits.values() for name, one in sorted(split.files.items())}

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for size, _ in self.files.values())

    def content(self) -> dict[str, Any]:
        """What the digest is of: equal wherever the files are equal."""
        splits = {
            split: {
                "images": one.images,
                "published": one.published,
                "manifest": one.manifest,
                "pixels": one.pixels.tolist(),
                "images_with": one.images_with.tolist(),
                "ignored": one.ignored,
            }
            for split, one in self.splits.items()
        }
        return {
            "set": self.name,
            "versions": {"manifest": MANIFEST_VERSION, "native": NATIVE_VERSION},
            "classes": self.classes,
            "splits": splits,
            "files": self.files,
        }

    @property
    def digest(self) -> str:
        """sha256 of all files with their checksums, and of all counts."""
        return digest(self.content())


def verify(name: str, home: Path, path: Path | None, partial: bool, tell: Tell) -> Report:
    """Read everything and tell all that is wrong; MissingInput where there is nothing.

    Where nothing is wrong, the checksums and the manifest are kept in the user's cache, and whatever reads the data set
    next knows them. Where something is, an earlier manifest is taken back.
    """
    begun, chosen = time.monotonic(), params(name, home, path)
    if not chosen.path.is_dir() or not any(chosen.path.iterdir()):
        raise MissingInput(f"{chosen.path}: {chosen.known.title} is not there; first: segbench data get {name}")
    problems, datasets, splits = list[str](), dict[Split, Native](), dict[Split, Contents]()
    for split in SPLITS:
        try:
            datasets[split] = open_split(name, chosen, split)
        except SegbenchError as error:
            problems.append(str(error))
    for split, dataset in datasets.items():
        if dataset.published and not partial:
            problems.append(f"{chosen.path}: {len(dataset):,} of {dataset.published:,} {split} images are there")
        statistics = chosen.known.facts["labels"].get(split)
        splits[split] = _read(dataset, split, statistics, tell)
        problems += splits[split].problems
    classes = next((dataset.classes for dataset in datasets.values()), chosen.known.classes)
    unique = tuple(dict.fromkeys(problems))
    report = Report(name, chosen.path, classes, splits, unique, time.monotonic() - begun)
    _keep(report)
    return report


def manifest_text(report: Report) -> str:
    """The manifest as JSON: what its digest is of, and apart from that when, where and with what it was made."""
    made = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "root": str(report.root.resolve()),
        "with": {"segbench": segbench.__version__, "python": platform.python_version(), "pillow": PIL.__version__},
    }
    content = report.content()
    return canonical({"made": made, "digest": digest(content), "content": content}) + "\n"


class _Examined(NamedTuple):
    """What is to be known of one image and its mask."""

    sums: dict[Path, Sum]
    counts: Int64[np.ndarray, " 256"] | None  # pixels by class id and IGNORE; None where the mask cannot be read
    problems: list[str]


def _read(dataset: Native, split: Split, statistics: Mapping[str, Any] | None, tell: Tell) -> Contents:
    """Read all of a split once, in threads and a few images at a time."""
    pixels, images_with, counted = np.zeros(256, np.int64), np.zeros(256, np.int64), 0
    problems, sums = list[str](), dict[Path, Sum]()
    for done, one in enumerate(checksums.in_order(lambda pair: _examine(dataset, pair), dataset.pairs), 1):
        problems += one.problems
        sums |= one.sums
        if one.counts is not None:
            counted += 1
            pixels += one.counts
            images_with += one.counts > 0
        tell(f"verifying {dataset.known.name} {split}", done, len(dataset))
    problems += _remember(dataset.root, sums)
    try:
        manifest = dataset.manifest
    except SegbenchError as error:  # of a treatment that a look at a few masks shows
        manifest = None
        problems.append(str(error))
    k = len(dataset.classes)
    pixels, images_with, ignored = pixels[:k], images_with[:k], int(pixels[IGNORE])
    if statistics is None:
        compared = "labels not compared: no statistics of them are published"
    elif counted < (dataset.published or len(dataset)):
        compared = "labels not compared: not all of them are there and readable"
    else:
        compared = f"labels compared: {label_statistics.allowed(statistics)}"
        wrong = label_statistics.wrong(dataset.classes, images_with, pixels, statistics)
        problems += [f"{dataset.root}: {split}: {one}" for one in wrong]
    return Contents(
        images=len(dataset),
        published=dataset.published or len(dataset),
        manifest=None if problems else manifest,
        pixels=pixels,
        images_with=images_with,
        ignored=ignored,
        compared=compared,
        files={checksums.key(dataset.root, path): (one.stamp.size, one.sha256) for path, one in sums.items()},
        problems=tuple(problems),
    )


def _remember(root: Path, sums: Mapping[Path, Sum]) -> list[str]:
    """Keep checksums for whatever reads the files next; tells where one differs though the file seems untouched."""
    rotten = checksums.contradicted(root, sums)
    # The earlier checksum of those stays, so that the next verification finds them, too.
    checksums.remember(root, {path: one for path, one in sums.items() if path not in rotten})
    if not all(one.settled for one in sums.values()):
        time.sleep(checksums.FRESH)  # the manifest reads files of this moment once more, and they are remembered then
    return [f"{path}: its bytes changed, but neither its size nor its times; get it again" for path in rotten]


def _examine(dataset: Native, pair: Pair) -> _Examined:
    sums, problems, contents = dict[Path, Sum](), list[str](), list[File]()
    for path in (pair.image, pair.mask):
        try:
            stamp = checksums.stamp(path)
            settled, file = stamp.settled, File.of(path)
        except SegbenchError as error:
            problems.append(str(error))
        else:
            contents.append(file)
            sums[path] = Sum(stamp, hashlib.sha256(file.data).hexdigest(), settled)
    truth = None
    if not problems:
        image, mask = contents
        try:
            truth = dataset.decode(pair, image, mask).mask
        except SegbenchError as error:
            problems.append(str(error))
            try:  # one that is sound is counted, whatever is wrong with its image
                truth = decode_mask(mask, dataset.labels)
            except SegbenchError as own:
                problems.append(str(own))
    counts = None if truth is None else np.bincount(truth.ravel(), minlength=256).astype(np.int64)
    return _Examined(sums, counts, problems)


def _keep(report: Report) -> None:
    """Write the manifest, or take back an earlier one; a read-only home costs only what `where` can tell."""
    place = manifest_place(report.root)
    with contextlib.suppress(OSError):
        if report.problems:
            place.unlink(missing_ok=True)
        else:
            write_whole(place, manifest_text(report).encode())
