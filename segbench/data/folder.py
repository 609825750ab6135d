"""Anybody's own data: a folder of images, masks, class names and splits.

    images/NAME.jpg, .jpeg or .png     pictures
    masks/NAME.png                     class ids as bytes, 255 = unlabelled (what is refused: `segbench.images`)
    classes.json                       ["sky", "road", ...], or {"classes": [...]}; the order is the class ids
    splits.json                        {"train": [NAME, ...], "val": [NAME, ...]}

Nothing is dropped silently: a file that is missing or cannot be trusted stops the reading with its name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

from pydantic import Field

from segbench.data import checksums
from segbench.errors import DataError, MissingInput
from segbench.images import Labels, read_pair
from segbench.specs import Spec
from segbench.types import IGNORE, Dataset, Sample

FOLDER_VERSION = 1  # part of every manifest: any change to what is read from the same files raises it
SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "images/NAME.jpg|jpeg|png, masks/NAME.png, classes.json, splits.json"


class Params(Spec):
    """Where the folder is, and which of its splits to train and to validate on."""

    path: Path = Field(description="the folder, from the YAML file's own")
    train: str = "train"
    val: str = "val"


def load(params: Params, split: Literal["train", "val"]) -> Dataset:
    """One split. MissingInput for what is not there (all of it told), DataError for what cannot be trusted."""
    folder = params.path
    if not folder.is_dir():
        raise MissingInput(f"{folder}: there is no such folder; expected one with {LAYOUT}")
    classes = _classes(folder / "classes.json")
    names = _names(folder / "splits.json", params, split)
    return _Folder(folder, classes, _files(folder, names))


@dataclass(frozen=True)
class _Files:
    image: Path
    mask: Path


class _Folder(Dataset):
    def __init__(self, root: Path, classes: tuple[str, ...], files: Sequence[_Files]) -> None:
        self.root = root
        self.classes, self.labels = classes, Labels.plain(len(classes))
        self.files = files

    @cached_property
    def manifest(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # reads every byte of the split
        digest = hashlib.sha256()
        names = json.dumps({"folder": FOLDER_VERSION, "classes": self.classes})
        digest.update(names.encode())
        sums = checksums.of(self.root, [path for pair in self.files for path in (pair.image, pair.mask)])
        for pair in self.files:
            line = [pair.image.name, sums[pair.image], pair.mask.name, sums[pair.mask]]
            digest.update(f"\n{json.dumps(line)}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        pair = self.files[index]
        return read_pair(pair.image, pair.mask, self.labels)


def _classes(path: Path) -> tuple[str, ...]:
    content = _json(path)
    listed = content.get("classes") if isinstance(content, dict) else content
    if not _are_names(listed) or not 1 <= len(listed) <= IGNORE:
        raise DataError(f'{path}: expected 1 to {IGNORE} class names, ["sky", "road", ...] or {{"classes": [...]}}')
    if twice := _repeated(listed):
        raise DataError(f"{path}: the class {_some(twice)} is listed more than once")
    if isinstance(content, dict):
        for key, own in (("num_classes", len(listed)), ("ignore_index", IGNORE)):
            if content.get(key, own) != own:
                raise DataError(f"{path}: {key} is {content[key]!r}; expected {own}")
    return tuple(listed)


def _names(path: Path, params: Params, split: Literal["train", "val"]) -> list[str]:
    splits = _json(path)
    if not isinstance(splits, dict) or not all(_are_names(listed) for listed in splits.values()):
        raise DataError(f'{path}: expected {{"train": [NAME, ...], "val": [NAME, ...]}}')
    wanted = {"train": params.train, "val": params.val}
    name = wanted[split]
    if name not in splits:
        there = ", ".join(repr(one) for one in sorted(splits)) or "none"
        raise MissingInput(
            f"{path}: no split {name!r}, only {there}; name the one to use in the task's data, as in `{split}: NAME`,"
            " or divide it in the file"
        )
    listed = splits[name]
    if not listed:
        raise DataError(f"{path}: the split {name!r} is empty")
    if odd := [one for one in listed if not _is_stem(one)]:
        raise DataError(f"{path}: {_some(odd)} in {name!r} is no plain file name (without folder and suffix)")
    if twice := _repeated(listed):
        raise DataError(f"{path}: {_some(twice)} is listed more than once in {name!r}")
    train, val = (splits.get(wanted[one], []) for one in ("train", "val"))
    if both := sorted(set(train) & set(val)):
        raise DataError(
            f"{path}: {_some(both)} is in {params.train!r} and in {params.val!r}, so the probe would be tested on what"
            " it was trained on"
        )
    return listed


def _files(folder: Path, names: Sequence[str]) -> list[_Files]:
    images, masks = _listed(folder / "images", SUFFIXES), _listed(folder / "masks", (".png",))
    missing = [f"images/{name}" for name in names if name not in images]
    missing += [f"masks/{name}.png" for name in names if name not in masks]
    if missing:
        raise MissingInput(f"{folder}: {_some(missing)} is listed in splits.json but not there")
    return [_Files(images[name], masks[name]) for name in names]


def _listed(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by stem; DataError if two of them have the same."""
    if not folder.is_dir():
        raise MissingInput(f"{folder}: there is no such folder; expected {LAYOUT}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if twice := _repeated(path.stem for path in files):
        raise DataError(f"{folder}: {_some(twice)} is there more than once, with different suffixes")
    return {path.stem: path for path in files}


def _json(path: Path) -> Any:
    """The content of a JSON file; DataError if it is none, or a key stands there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := _repeated(key for key, _ in pairs):
            raise DataError(f"{path}: the key {_some(twice)} stands there more than once")
        return dict(pairs)

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique)
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: there is no such file; expected a folder with {LAYOUT}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON ({error})") from error


def _are_names(listed: Any) -> TypeGuard[list[str]]:
    return isinstance(listed, list) and all(isinstance(one, str) and one.strip() for one in listed)


def _is_stem(name: str) -> bool:
    """Whether a name stays inside its folder, on every system, and can be told in one line."""
    return name.isprintable() and not name.startswith(".") and not set(name) & set('/\\:*?"<>|')


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    said = ", ".join(repr(name) for name in names[:3])
    return said + (f" and {len(names) - 3} more" if len(names) > 3 else "")
