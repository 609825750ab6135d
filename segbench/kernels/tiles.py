"""Where the pixels of a few images lie between the patches of their grids, tile by tile, as a GPU reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64, Num
from torch import Tensor

from segbench.geometry import Axis, between
from segbench.types import GridMap

ROWS, COLUMNS = 32, 32  # of pixels in a tile: rounding grows with the rows of a progression; the lanes of a warp


@dataclass(frozen=True)
class Tiles:
    """Every row run of an image with every column run. Empty runs fill up the tables."""

    rows: Int32[Tensor, "b r 2"]  # first pixel row, their number
    columns: Int32[Tensor, "b c 4"]  # first pixel column, their number, grid column on the left, on the right
    shares: Float32[Tensor, "b c 2"]  # of the grid column on the right: at the first pixel, from pixel to pixel
    images: Int64[Tensor, "b 2"]  # where its pixels begin among those of all images, pixels to the next row
    first: Float64[Tensor, "b r h"]  # weights of the grid's rows in the first pixel row of a run
    change: Float64[Tensor, "b r h"]  # what they change by from pixel row to pixel row
    left: Int32[Tensor, "b w1"]  # the first column run that has this grid column or a later one on its left
    pixels: int  # of all images

    @classmethod
    def of(cls, grid_maps: Sequence[GridMap], whole: bool, device: torch.device | str) -> "Tiles":
        """Tiles over all pixels, or over those that the model saw."""
        assert len({grid_map.grid for grid_map in grid_maps}) == 1, "images of one launch share a grid"
        tables = [_filled_up(some) for some in zip(*(_image(grid_map, whole) for grid_map in grid_maps), strict=True)]
        rows, columns, shares, first, change, left = (torch.from_numpy(table).to(device) for table in tables)
        sizes = np.array([grid_map.image for grid_map in grid_maps], np.int64)
        ends = sizes.prod(1).cumsum()
        images = np.stack([np.append(0, ends[:-1]), sizes[:, 1]], 1)
        return cls(rows, columns, shares, torch.from_numpy(images).to(device), first, change, left, int(ends[-1]))

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """As every kernel reads them."""
        return self.rows, self.columns, self.shares, self.images

    @property
    def shape(self) -> tuple[int, int]:
        """Row runs and column runs of an image, empty ones included."""
        return self.rows.shape[1], self.columns.shape[1]


class Runs(NamedTuple):
    """Consecutive pixels of one axis between the same two patches, or beyond the outermost; ROWS or COLUMNS at most."""

    begin: Int64[np.ndarray, " r"]  # the first pixel
    length: Int64[np.ndarray, " r"]
    low: Int64[np.ndarray, " r"]  # the patch before
    high: Int64[np.ndarray, " r"]  # and after; the same if the grid has but one
    share: Float64[np.ndarray, " r"]  # of the way to the next patch, at the first pixel
    change: Float64[np.ndarray, " r"]  # of the share, from pixel to pixel


def runs(grid_map: GridMap, axis: Axis, whole: bool) -> Runs:
    """The runs of rows (0) or columns (1), over all pixels or over those that the model saw."""
    low, share = between(grid_map, axis)
    at, last = grid_map.coordinates(axis), grid_map.grid[axis] - 1
    piece = low * 3 + (at < 0) + 2 * (at > last)  # beyond the outermost patches the share stays
    seen = slice(0, len(low)) if whole else slice(grid_map.seen[axis], grid_map.seen[axis + 2])
    pixel = np.arange(len(low))[seen]
    longest = (ROWS, COLUMNS)[axis]
    starts = np.flatnonzero(np.diff(piece[seen], prepend=-1))
    ends = np.append(starts, len(pixel))[1:]
    begin = np.concatenate([np.arange(*pair, longest) for pair in zip(starts, ends, strict=True)] or [starts])
    length = np.diff(begin, append=len(pixel))
    first, final = pixel[begin], pixel[begin + length - 1]
    change = (share[final] - share[first]) / np.maximum(length - 1, 1)
    return Runs(first, length, low[first], np.minimum(low[first] + 1, last), share[first], change)


@lru_cache(maxsize=2048)  # most data sets have a few image sizes
def _image(grid_map: GridMap, whole: bool) -> tuple[np.ndarray, ...]:
    """One image's rows, columns, shares, first, change and left."""
    (height, width), (down, across) = grid_map.grid, (runs(grid_map, axis, whole) for axis in (0, 1))
    first, change = np.zeros((2, len(down.begin), height))
    run = np.arange(len(down.begin))
    for weights, share, rest in ((first, down.share, 1 - down.share), (change, down.change, -down.change)):
        weights[run, down.low] = rest
        weights[run, down.high] += share
    rows = np.stack([down.begin, down.length], 1).astype(np.int32)
    columns = np.stack([across.begin, across.length, across.low, across.high], 1).astype(np.int32)
    shares = np.stack([across.share, across.change], 1).astype(np.float32)
    return rows, columns, shares, first, change, np.searchsorted(across.low, np.arange(width + 1)).astype(np.int32)


def _filled_up(tables: Sequence[Num[np.ndarray, "_ *m"]]) -> Num[np.ndarray, "b n *m"]:
    """All in one, the shorter ones with zeros at the end."""
    whole = np.zeros((len(tables), max(map(len, tables)), *tables[0].shape[1:]), tables[0].dtype)
    for row, table in zip(whole, tables, strict=True):
        row[: len(table)] = table
    return whole
