"""The pictures that training sees: drawn once, kept as arrays, read through a memory map."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from segbench.data import scenes


@dataclass(frozen=True)
class Pool:
    """n drawn scenes."""

    images: UInt8[np.ndarray, "n H W 3"]
    counts: UInt16[np.ndarray, "n h w k"]  # pixels of every class per cell

    def __len__(self) -> int:
        return len(self.images)


def pool(folder: Path, count: int, size: int, threads: int, progress: Callable[[str], None]) -> Pool:
    """Scenes 0..count-1 of the world 0, from `folder` if they are there, else drawn and left there."""
    stem = folder / f"scenes-v{scenes.WORLD_VERSION}-{count}-{size}"
    images, counts = stem.with_suffix(".images.npy"), stem.with_suffix(".counts.npy")
    if not (images.exists() and counts.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(images, counts, range(count), size, threads, progress)
    return Pool(np.load(images, mmap_mode="r"), np.load(counts, mmap_mode="r"))


def held_out(count: int, size: int) -> Pool:
    """The first `count` scenes of the world 0 that no training sees."""
    drawn = [scenes.draw(0, scenes.HELD_OUT + i, (size, size)) for i in range(count)]
    return Pool(np.stack([s.image for s in drawn]), np.stack([scenes.cell_counts(s.mask) for s in drawn]))


def _draw(images: Path, counts: Path, numbers: range, size: int, threads: int, progress: Callable[[str], None]) -> None:
    shapes = {
        images: ((len(numbers), size, size, 3), np.uint8),
        counts: ((len(numbers), scenes.GRID, scenes.GRID, len(scenes.CLASSES)), np.uint16),
    }
    unfinished = {path: path.with_suffix(f".{os.getpid()}.part") for path in shapes}
    arrays = [np.lib.format.open_memmap(unfinished[p], "w+", dtype, shape) for p, (shape, dtype) in shapes.items()]
    for i, (image, count) in enumerate(_drawn(numbers, size, threads)):
        arrays[0][i], arrays[1][i] = image, count
        if (i + 1) % 4000 == 0:
            progress(f"scenes: {i + 1} of {len(numbers)} drawn")
    for path, array in zip(shapes, arrays, strict=True):
        array.flush()
        os.replace(unfinished[path], path)


def _drawn(numbers: range, size: int, threads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures and cell counts in the order of their numbers, drawn by as many processes."""
    tasks = ((number, size) for number in numbers)
    if threads == 1:  # a process of its own would import torch before it draws
        yield from map(_one, tasks)
        return
    with get_context("spawn").Pool(threads) as workers:
        yield from workers.imap(_one, tasks, chunksize=64)


def _one(task: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    number, size = task
    scene = scenes.draw(0, number, (size, size))
    return scene.image, scenes.cell_counts(scene.mask)
