"""Where the pixels of an image lie between the patches of its grid, in the arrays that the kernels read."""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32

from segbench.geometry import between
from segbench.types import GridMap

PADDING = 64  # floats that a kernel may read behind the last column: the widest target's block


class Axis(NamedTuple):
    """Rows or columns. A cell lies between two neighbouring patch centres."""

    low: Int32[np.ndarray, " n"]  # the grid row before every pixel row
    way: Float64[np.ndarray, " n"]  # how far on the way to the next it lies
    way32: Float32[np.ndarray, " m"]  # the same, and PADDING
    whole: Int32[np.ndarray, " g"]  # the first pixel of every cell, and the end
    seen: Int32[np.ndarray, " g"]  # the same, without the pixels that no model saw


class Runs(NamedTuple):
    """The seen pixel columns, cut where the logits along a row bend: at patch centres and at clamping."""

    cell: Int32[np.ndarray, " c"]  # the grid column before a run
    start: Int32[np.ndarray, " c+1"]  # its first pixel, and the end
    way: Float32[np.ndarray, "c 2"]  # where on the way to the next grid column it starts, and its step per pixel


@lru_cache(maxsize=1024)  # most data sets have a few image sizes
def axis(grid_map: GridMap, number: Literal[0, 1]) -> Axis:
    """The table of the rows (0) or columns (1)."""
    low, way = between(grid_map, number)
    cells = max(grid_map.grid[number] - 1, 1)
    whole = np.searchsorted(low, np.arange(cells + 1)).astype(np.int32)
    seen = whole.clip(grid_map.seen[number], grid_map.seen[number + 2])
    return Axis(low.astype(np.int32), way, np.pad(way, (0, PADDING)).astype(np.float32), whole, seen)


@lru_cache(maxsize=1024)
def runs(grid_map: GridMap) -> Runs:
    """The runs of columns; none where no column was seen."""
    left, right = grid_map.seen[1], max(grid_map.seen[1::2])
    low, way = (part[left:right] for part in between(grid_map, 1))
    at = grid_map.coordinates(1)[left:right]
    clamped = (at < 0) | (at > grid_map.grid[1] - 1)
    bends = np.ones(len(low), bool)
    bends[1:] = (np.diff(low) != 0) | (np.diff(clamped) != 0)
    pixel = np.arange(len(low))
    since = pixel - np.maximum.accumulate(np.where(bends, pixel, 0))
    first = np.flatnonzero(since % math.ceil(1 / grid_map.scale[1]) == 0)  # none longer than a patch, clamped ones too
    step = np.where(clamped[first], 0, grid_map.scale[1])
    return Runs(
        low[first].astype(np.int32),
        np.append(first + left, right).astype(np.int32),
        np.stack([way[first], step], 1).astype(np.float32),
    )
