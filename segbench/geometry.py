"""Where patches and pixels meet: the ground truth never moves, predictions come back to the original pixels.

Everything is separable: the rows and the columns of an image have one small dense matrix each, and what happens to a
mask or to logits is two matrix products. Nothing is resized, rounded or guessed; the adapter's `GridMap` says it all.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from segbench.types import IGNORE, GridMap

ROUNDING = 1e-9  # patches; a shared length below it is an artefact of float64 at a patch's edge

Axis = Literal[0, 1]  # 0 rows, 1 columns


class Coverage(NamedTuple):
    """Labelled pixels of an image: those the model saw, and all of them."""

    seen: int
    labelled: int


def pad(grid: tuple[int, int], image: tuple[int, int]) -> GridMap:
    """The image in the middle of a square canvas (odd remainders to the bottom right), the grid over the canvas.

    This is LLaVA's `expand2square`; patches that lie on padding alone hold no pixel and have no ground truth.
    """
    side = max(image)
    scale = (grid[0] / side, grid[1] / side)
    shift = tuple((side - length) // 2 * patches for length, patches in zip(image, scale, strict=True))
    return GridMap(grid, image, scale, (shift[0], shift[1]), (0, 0, *image))


def crop(grid: tuple[int, int], image: tuple[int, int], side: int) -> GridMap:
    """The short side resized to `side` model pixels, the middle square of `side` cut out, the grid over that square.

    This is the arithmetic of CLIP's processor, which truncates the length of the long side. Pixels whose centre is cut
    away are unseen.
    """
    resized = [int(side * length / min(image)) for length in image]
    cut = [(length - side) // 2 for length in resized]
    scale = (resized[0] / image[0] * grid[0] / side, resized[1] / image[1] * grid[1] / side)
    shift = (-cut[0] * grid[0] / side, -cut[1] * grid[1] / side)
    whole = GridMap(grid, image, scale, shift, (0, 0, *image))
    rows, columns = (np.flatnonzero(_cell(whole, axis) >= 0) for axis in (0, 1))
    seen = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return GridMap(grid, image, scale, shift, seen)


def between(grid_map: GridMap, axis: Axis) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The grid row (or column) before every pixel row (or column), and how far on the way to the next it lies (0..1).

    Never the last one, unless the grid has but one.
    """
    patches = grid_map.grid[axis]
    at = grid_map.coordinates(axis).clip(0, patches - 1)
    low = np.floor(at).astype(np.int64).clip(0, max(patches - 2, 0))
    return low, at - low


def upsampling(grid_map: GridMap, axis: Axis) -> Float[np.ndarray, "n g"]:
    """Bilinear weights of every pixel row (or column) over the rows (or columns) of the grid; each row sums to 1.

    Sampling is at pixel centres (align_corners=False), clamped at the border of the grid. Unseen pixels get the
    border's value: they are masked out, never zeroed. `upsampling(m, 0) @ logits @ upsampling(m, 1).T` are the logits
    of one class at original resolution.
    """
    low, share = between(grid_map, axis)
    patches, pixel = grid_map.grid[axis], np.arange(len(low))
    weights = np.zeros((len(low), patches))
    weights[pixel, low] = 1 - share
    weights[pixel, np.minimum(low + 1, patches - 1)] += share
    return weights


def seen_mask(grid_map: GridMap) -> Bool[np.ndarray, "H W"]:
    """The pixels that reached the model."""
    seen = np.zeros(grid_map.image, bool)
    top, left, bottom, right = grid_map.seen
    seen[top:bottom, left:right] = True
    return seen


def seen_truth(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap) -> UInt8[np.ndarray, "H W"]:
    """The ground truth that counts: IGNORE also where the model saw nothing."""
    _check_size(mask, grid_map)
    return np.where(seen_mask(grid_map), mask, np.uint8(IGNORE))


def coverage(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap) -> Coverage:
    """How many labelled pixels the model saw, and how many there are; sums over images, then a ratio."""
    return Coverage(int((seen_truth(mask, grid_map) != IGNORE).sum()), int((mask != IGNORE).sum()))


def patch_index(grid_map: GridMap) -> Int[np.ndarray, "H W"]:
    """Raster index of the patch that holds each pixel's centre; -1 where unseen or outside the grid."""
    rows, columns = _cell(grid_map, 0)[:, None], _cell(grid_map, 1)[None, :]
    inside = (rows >= 0) & (columns >= 0) & seen_mask(grid_map)
    return np.where(inside, rows * grid_map.grid[1] + columns, -1)


def at_model(
    mask: UInt8[np.ndarray, "H W"], grid_map: GridMap, pixels: float
) -> tuple[UInt8[np.ndarray, "H2 W2"], GridMap]:
    """The ground truth as the model sees it, `pixels` along a patch's edge, and the grid map of that picture.

    Nearest pixels: class ids are never mixed. IGNORE where the picture shows nothing of the image (padding).
    """
    _check_size(mask, grid_map)
    frame = (round(grid_map.grid[0] * pixels), round(grid_map.grid[1] * pixels))
    seen, at = grid_map.seen, []
    for axis in (0, 1):
        patches = (np.arange(frame[axis]) + 0.5) * grid_map.grid[axis] / frame[axis]
        nearest = np.floor((patches - grid_map.shift[axis]) / grid_map.scale[axis]).astype(np.int64)
        at.append(np.where((nearest >= seen[axis]) & (nearest < seen[axis + 2]), nearest, -1))
    rows, columns = at[0][:, None], at[1][None, :]
    shown = np.where((rows >= 0) & (columns >= 0), mask[rows, columns], np.uint8(IGNORE))
    return shown, GridMap.squash(grid_map.grid, frame)


def patch_labels(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap, classes: int) -> Int[np.ndarray, " t"]:
    """Ground truth of every patch: the commonest class among its pixels, IGNORE if none of them is labelled.

    Unlabelled pixels have no vote. The smallest class id wins a tie.
    """
    _check_size(mask, grid_map)
    patch, tokens = patch_index(grid_map), grid_map.grid[0] * grid_map.grid[1]
    votes = (patch >= 0) & (mask != IGNORE)
    ids = patch[votes] * classes + mask[votes]
    counts = np.bincount(ids, minlength=tokens * classes).reshape(tokens, classes)
    return np.where(counts.any(1), counts.argmax(1), IGNORE)


def area_fractions(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap, classes: int) -> Float[np.ndarray, "t k"]:
    """Share of every class in the labelled area of every patch, pixels cut exactly at the patch's edges.

    What a perfect encoder would say of its patches: the features of the oracle. A patch without labelled area is zero.
    """
    truth = seen_truth(mask, grid_map)
    rows, columns = _overlap(grid_map, 0), _overlap(grid_map, 1)
    area = np.zeros((classes, *grid_map.grid))
    for label in np.unique(truth[truth != IGNORE]):
        area[label] = rows @ (truth == label) @ columns.T
    area = area.reshape(classes, -1).T
    labelled = area.sum(1, keepdims=True)
    return area / np.where(labelled > 0, labelled, 1)


def _cell(grid_map: GridMap, axis: Axis) -> Int[np.ndarray, " n"]:
    """Index of the grid row (or column) that holds each pixel centre, -1 outside the grid."""
    at = np.floor(grid_map.coordinates(axis) + 0.5).astype(np.int64)
    return np.where((at >= 0) & (at < grid_map.grid[axis]), at, -1)


def _overlap(grid_map: GridMap, axis: Axis) -> Float[np.ndarray, "g n"]:
    """Length shared by every grid row and every pixel row, in patches."""
    centre = grid_map.coordinates(axis) + 0.5
    half = grid_map.scale[axis] / 2
    edge = np.arange(grid_map.grid[axis])[:, None]
    length = np.minimum(centre + half, edge + 1) - np.maximum(centre - half, edge)
    return np.where(length > ROUNDING, length, 0)


def _check_size(mask: UInt8[np.ndarray, "H W"], grid_map: GridMap) -> None:
    assert mask.shape == grid_map.image, f"a mask of {mask.shape} pixels with a grid map of {grid_map.image}"
