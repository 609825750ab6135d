"""Which files of a data set are a picture and its mask: by the folders they are in, or by a list of names."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segbench.errors import DataError, MissingInput
from segbench.images import Mark


class Pair(NamedTuple):
    """A picture and its mask, by their files. There may be 100,000, so that paths are made when they are asked for."""

    name: str
    images: Path
    picture: str  # how the file names of pictures end
    masks: Path
    truth: str  # and those of masks
    cluster: str | None = None
    marks: tuple[Mark, ...] | None = None  # of untreated masks like this one, where they are not those of its data set

    @property
    def image(self) -> Path:
        return self.images / (self.name + self.picture)

    @property
    def mask(self) -> Path:
        return self.masks / (self.name + self.truth)


def beside(
    images: Path,
    masks: Path,
    picture: str = ".jpg",
    truth: str = ".png",
    cluster: str | None = None,
    aside: str | None = None,
) -> list[Pair]:
    """Pairs of the files `images/NAME.jpg` and `masks/NAME.png`, by name; MissingInput for what has no partner.

    Masks that end in `aside` are no part of the data set.
    """
    pictures, truths = names(images, picture), names(masks, truth)
    if aside is not None:
        truths = {name for name in truths if not (name + truth).endswith(aside)}
    if alone := sorted(pictures ^ truths):
        there, absent = (images, masks) if alone[0] in pictures else (masks, images)
        raise MissingInput(
            f"{there}: {len(alone):,} files have no partner, the first is {alone[0]}, which is not in {absent}"
        )
    return [Pair(name, images, picture, masks, truth, cluster) for name in sorted(pictures)]


def of(
    wanted: Iterable[str], images: Path, masks: Path, picture: str = ".jpg", marks: tuple[Mark, ...] | None = None
) -> list[Pair]:
    """Pairs of the wanted names, as far as they are there; MissingInput where only one of picture and mask is."""
    pictures, truths = names(images, picture), names(masks, ".png")
    wanted = set(wanted)
    if alone := sorted(wanted & (pictures ^ truths)):
        there, absent = (images, masks) if alone[0] in pictures else (masks, images)
        raise MissingInput(f"{absent}: {alone[0]} and {len(alone) - 1} more are not there, but in {there}")
    return [Pair(name, images, picture, masks, ".png", marks=marks) for name in sorted(wanted & pictures)]


def names(folder: Path, tail: str) -> set[str]:
    """What the files of a folder that end so are called before that; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    return {name.removesuffix(tail) for name in files if name.endswith(tail) and not name.startswith(".")}


def read(path: Path) -> list[str]:
    """The names in a list file: `NAME` or `FOLDER/NAME.jpg FOLDER/NAME.png`, one image a line.

    MissingInput if the file is not there, DataError for a strange name, one that is there twice or two on a line.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: there is no such list") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    found = [[PurePosixPath(part).stem for part in line] for line in lines]
    for stems in found:
        if len(set(stems)) != 1 or not re.fullmatch(r"\w[\w.-]*", stems[0]):
            raise DataError(f"{path}: {' '.join(stems)!r} is no name of an image")
    if len({stems[0] for stems in found}) < len(found):
        raise DataError(f"{path}: lists an image twice")
    return [stems[0] for stems in found]


def first_there(*folders: Path) -> Path:
    """The first of the places where a folder may lie, or the usual one, which comes first."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])
