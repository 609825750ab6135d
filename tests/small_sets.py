"""ADE20K as if ten images had been published of it, so that a drawn tree is all of it."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import native_trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import ade20k, checksums
from segbench.data.facts import Archive

IMAGES = {"train": 6, "val": 4}
FOLDERS = {"train": "training", "val": "validation"}


def publish(monkeypatch: pytest.MonkeyPatch, root: Path, archives: Sequence[Archive] = ()) -> Path:
    """Draw the set, and let it be what was published: counts, archives, statistics of its labels."""
    native_trees.ade20k(root, *IMAGES.values())
    labels = {split: statistics(root / "annotations" / folder) for split, folder in FOLDERS.items()}
    known = ade20k.Params.known
    known = replace(known, images=IMAGES, archives=tuple(archives), facts={**known.facts, "labels": labels})
    monkeypatch.setattr(ade20k.Params, "known", known)
    monkeypatch.setattr(checksums, "FRESH", 0.0)  # drawn this very moment
    return root


def statistics(folder: Path) -> dict[str, object]:
    """Images and pixels of every class, counted from the values in the files."""
    values = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    counts = np.array([[(one == value).sum() for value in range(1, 151)] for one in values])
    images, pixels = (counts > 0).sum(0).tolist(), counts.sum(0).tolist()
    return {"images": images, "pixels": pixels, "tolerance": 0.0, "slack": 0, "source": "the tests"}


def masks(root: Path, split: str = "val") -> list[Path]:
    return sorted((root / "annotations" / FOLDERS[split]).iterdir())


def images(root: Path, split: str = "val") -> list[Path]:
    return sorted((root / "images" / FOLDERS[split]).iterdir())


def packed(root: Path, folder: str = "ADEChallengeData2016") -> bytes:
    """The tree as the zip that is published."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                file.write(path, f"{folder}/{path.relative_to(root)}")
    return content.getvalue()


def packed_with(content: bytes, name: str, more: bytes) -> bytes:
    """The same zip with one more member."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, more)
    return file.getvalue()
