"""Up-sampled cross-entropy and argmax on a GPU, in Triton: full-resolution logits are never in memory.

The pixels of an image fall into tiles: at most 32 rows by 32 columns between the same four patches. From row to row of
a tile a class's logit changes by the same amount, so that its exponential is a geometric progression: one
multiplication per pixel and class where others take an exponential. The ground truth enters linearly, as in
`progression`. Sums are partial per tile and added in a fixed order: no atomics, the same bits every time.

Several images whose grids are alike are one call. The memory of a call does not grow beyond `AT_ONCE` images x probes.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from subprocess import SubprocessError
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int16, Int32, Int64
from torch import Tensor

from segbench.geometry import Axis, between
from segbench.kernels import plain, progression
from segbench.kernels.plain import LIMIT, unbounded
from segbench.kernels.progression import fits, mass
from segbench.kernels.target import Target
from segbench.types import GridMap

ROWS, COLUMNS = 32, 32  # of pixels in a tile: rounding grows with the rows of a progression; the lanes of a warp
AT_ONCE = 64  # images x probes in a launch; each needs about 8 MB (150 classes, 24 x 24 patches, 512 x 683 pixels)
TALLIED = 4096  # pixels that a program counts
LOG2 = math.log(2)
NEVER = -1e30  # logit of the classes that fill up a block
TOLERANCE, NEAR_TIES = 2e-5, 8  # relative error, and differences in counts, that rounding may cause at the first trial

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether triton is installed; it comes with torch's builds for CUDA."""
    return find_spec("triton") is not None


@torch.no_grad()
def losses_and_gradients(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target]
) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
    """As `progression.loss_and_gradient`, for b images with grids of one size: few launches for many images."""
    for target in targets:
        fits(target, logits.shape[3])
    images = max(1, AT_ONCE // len(logits))
    parts = [
        _losses_and_gradients(logits[:, begin : begin + images].float(), targets[begin : begin + images])
        for begin in range(0, len(targets), images)
    ]
    losses, gradients = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return losses, gradients


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> Int16[Tensor, "l H W"]:
    """As `plain.upsampled_argmax`; another class only where two logits are equal up to float32's rounding."""
    from segbench.kernels import cuda_kernels

    for row, largest in enumerate(logits.abs().amax((1, 2)).tolist()):
        if not largest <= LIMIT:  # nor is NaN
            raise unbounded(logits, row)
    tiles = _Tiles.of([target], whole=True)
    (height, width), sites = target.grid_map.image, len(logits)
    out = torch.empty(sites, height, width, dtype=torch.int16, device=logits.device)
    (r, c), block = tiles.shape, _block(logits.shape[2])
    for begin in range(0, sites, AT_ONCE):
        start, step = _lines(logits[begin : begin + AT_ONCE, None].double(), tiles)
        arguments = (start, step, *tiles.tables, out[begin:], 1, r, c, *start.shape[2:], height * width)
        _launch(cuda_kernels.winners, (len(start), r * c), *arguments, BK=block, BX=COLUMNS, BY=ROWS)
    return out


@torch.no_grad()
def upsampled_counts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None = None
) -> Int64[Tensor, "l b k 3"]:
    """As `plain.upsampled_counts`."""
    return torch.stack([_counts(logits[:, image], target, confusion) for image, target in enumerate(targets)], 1)


def _counts(
    logits: Float[Tensor, "l t k"], target: Target, confusion: Int64[Tensor, "l k k"] | None
) -> Int64[Tensor, "l k 3"]:
    from segbench.kernels import cuda_kernels

    winners = upsampled_argmax(logits, target)
    labels, valid, classes = target.labels.contiguous(), target.valid.contiguous(), logits.shape[2]
    bins = 1 << classes.bit_length()  # a power of two, and one at least for what does not count
    counts = winners.new_empty(len(winners), -(-labels.numel() // TALLIED), 3, bins, dtype=torch.int32)
    arguments = (winners, labels, valid.view(torch.uint8), counts, labels.numel(), classes)
    _launch(cuda_kernels.tally, counts.shape[:2], *arguments, BINS=bins, BLOCK=TALLIED, num_warps=4)
    if confusion is not None:
        counted = valid & (labels < classes)
        truth = labels[counted].long() * classes
        for pairs, predicted in zip(confusion, winners, strict=True):
            pairs += torch.bincount(truth + predicted[counted], minlength=classes**2).view(classes, classes)
    return counts.sum(1)[..., :classes].transpose(1, 2).contiguous()


class Kernels:
    """What this module computes, by the names of `compiled.Kernels`."""

    losses_and_gradients = staticmethod(losses_and_gradients)
    argmax = staticmethod(upsampled_argmax)
    counts = staticmethod(upsampled_counts)


class Making(NamedTuple):
    """Which kernels work on a device, and in words that a reader of a log understands."""

    says: str
    kernels: Kernels | None  # None: plain PyTorch


@cache
def making(device: str) -> Making:
    """What trains and evaluates probes on a GPU; tried on a small image, and told to the log, once."""
    fault = _fault(device) if available() else "triton is not installed"
    made = Making("Triton", Kernels()) if fault is None else Making(f"plain PyTorch ({fault})", None)
    _log.info("probes on %s: %s", device, made.says)
    return made


def _fault(device: str) -> str | None:
    """What keeps the kernels from computing on this device what plain PyTorch computes on a CPU; None if nothing does.

    No triton is like another: it may lack a C compiler, or have an error of its own.
    """
    try:
        from triton.errors import TritonError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    draw = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    logits = torch.randn(3, 4, 40, generator=draw) * scales
    mask = torch.randint(0, 40, (12, 34), generator=draw, dtype=torch.uint8).numpy()
    here, there = (Target.of(GridMap.squash((2, 2), (12, 34)), mask, place) for place in ("cpu", device))
    right, slope = progression.loss_and_gradient(logits, here)
    try:
        batch = logits[:, None].to(device)
        losses, gradient = (one[:, 0].cpu() for one in losses_and_gradients(batch, [there]))
        counts = upsampled_counts(batch, [there]).cpu()
    except (TritonError, SubprocessError, RuntimeError, OSError) as error:
        return f"triton cannot compile: {str(error).strip().splitlines()[-1]}"
    off = float(((losses - right) / right).abs().max())
    off = max(off, float(((gradient - slope).norm(dim=(1, 2)) / slope.norm(dim=(1, 2))).max()))
    others = int((counts - plain.upsampled_counts(logits[:, None], [here])).abs().sum())
    if not off < TOLERANCE or others > NEAR_TIES:
        return f"triton's kernels are off by {off:.1e} here and count {others} pixels otherwise"
    return None


class _Runs(NamedTuple):
    """Consecutive pixels of one axis between the same two patches, or beyond the outermost; ROWS or COLUMNS at most."""

    begin: Int64[np.ndarray, " r"]  # the first pixel
    length: Int64[np.ndarray, " r"]
    low: Int64[np.ndarray, " r"]  # the patch before
    high: Int64[np.ndarray, " r"]  # and after; the same if the grid has but one
    share: Float64[np.ndarray, " r"]  # of the way to the next patch, at the first pixel
    change: Float64[np.ndarray, " r"]  # of the share, from pixel to pixel


@dataclass(frozen=True)
class _Tiles:
    """Where the tiles of a few images lie: every row run with every column run. Empty runs fill up the tables."""

    rows: Int32[Tensor, "b r 2"]  # first pixel row, their number
    columns: Int32[Tensor, "b c 4"]  # first pixel column, their number, grid column on the left, on the right
    shares: Float32[Tensor, "b c 2"]  # of the grid column on the right: at the first pixel, from pixel to pixel
    images: Int64[Tensor, "b 2"]  # where its pixels begin among those of all images, pixels to the next row
    first: Float64[Tensor, "b r h"]  # weights of the grid's rows in the first pixel row of a run
    change: Float64[Tensor, "b r h"]  # what they change by from pixel row to pixel row
    left: Int32[Tensor, "b w1"]  # the first column run that has this grid column or a later one on its left
    pixels: int  # of all images

    @classmethod
    def of(cls, targets: Sequence[Target], whole: bool) -> "_Tiles":
        """Tiles over all pixels, or over those that the model saw."""
        height, width = targets[0].grid_map.grid
        assert all(target.grid_map.grid == (height, width) for target in targets), "images of one call share a grid"
        runs = [tuple(_runs(target.grid_map, axis, whole) for axis in (0, 1)) for target in targets]
        counts = [max(len(pair[axis].begin) for pair in runs) for axis in (0, 1)]
        b, (r, c) = len(targets), counts
        rows, columns, shares = np.zeros((b, r, 2), np.int32), np.zeros((b, c, 4), np.int32), np.zeros((b, c, 2))
        first, change = np.zeros((b, r, height)), np.zeros((b, r, height))
        left, images = np.zeros((b, width + 1), np.int32), np.zeros((b, 2), np.int64)
        pixels = 0
        for at, (target, (down, across)) in enumerate(zip(targets, runs, strict=True)):
            r, c = len(down.begin), len(across.begin)
            rows[at, :r] = np.stack([down.begin, down.length], -1)
            columns[at, :c] = np.stack([across.begin, across.length, across.low, across.high], -1)
            shares[at, :c] = np.stack([across.share, across.change], -1)
            for weights, share, rest in ((first, down.share, 1 - down.share), (change, down.change, -down.change)):
                weights[at, np.arange(r), down.low] = rest
                weights[at, np.arange(r), down.high] += share
            left[at] = np.searchsorted(across.low, np.arange(width + 1))
            images[at] = pixels, target.grid_map.image[1]
            pixels += target.valid.numel()
        tables = (rows, columns, shares.astype(np.float32), images, first, change, left)
        a, b, c, d, e, f, g = (torch.from_numpy(table).to(targets[0].valid.device) for table in tables)
        return cls(a, b, c, d, e, f, g, pixels)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """As every kernel reads them."""
        return self.rows, self.columns, self.shares, self.images

    @property
    def shape(self) -> tuple[int, int]:
        """Row runs and column runs of an image, empty ones included."""
        return self.rows.shape[1], self.columns.shape[1]


def _losses_and_gradients(
    logits: Float32[Tensor, "l b t k"], targets: Sequence[Target]
) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
    from segbench.kernels import cuda_kernels

    sites, b, _, classes = logits.shape
    sound = logits.abs().amax((2, 3)) <= LIMIT  # nor is NaN
    tiles, labels = _Tiles.of(targets, whole=False), torch.stack([_mass(one, classes) for one in targets])
    logits = logits.double()
    logits -= logits.amax(-1, keepdim=True)  # changes nothing, as every pixel's weights sum to 1, but the rounding
    start, step = _lines(logits / LOG2, tiles)
    block, (r, c), w = _block(classes), tiles.shape, start.shape[2]
    valid = torch.cat([target.valid.flatten() for target in targets]).view(torch.uint8)
    lse = logits.new_empty(sites, tiles.pixels, dtype=torch.float32)
    sums = torch.empty(len(start), r, c, device=lse.device)
    far = torch.empty(len(start), r, c, dtype=torch.int8, device=lse.device)
    before, sizes = (start, step, *tiles.tables, valid, lse, far), (b, r, c, *start.shape[2:])
    _launch(cuda_kernels.log_sums, (len(start), r * c), *before, sums, *sizes, tiles.pixels, BK=block, BX=COLUMNS)
    losses = sums.double().sum((1, 2)).view(sites, b) * LOG2 - (labels * logits).sum((2, 3))
    parts = torch.empty(len(start), r, c, 2, 2, start.shape[3], device=lse.device)
    collected = torch.empty(len(start), r, 2, *start.shape[2:], device=lse.device)
    grid = (len(start), r * c, start.shape[3] // block)
    _launch(cuda_kernels.gradients, grid, *before, parts, *sizes, tiles.pixels, BK=block, BX=COLUMNS)
    _launch(cuda_kernels.collect, (grid[0], r * w, grid[2]), parts, tiles.left, collected, *sizes, BK=block)
    by_run = collected[..., :classes].double().view(sites, b, r, 2, w, classes)
    gradient = torch.einsum("brh,lbrwk->lbhwk", tiles.first, by_run[:, :, :, 0])
    gradient += torch.einsum("brh,lbrwk->lbhwk", tiles.change, by_run[:, :, :, 1])
    bad = torch.where(sound, 0.0, torch.nan)
    return losses + bad, (gradient.flatten(2, 3) - labels + bad[:, :, None, None]).float()


def _mass(target: Target, classes: int) -> Float64[Tensor, "t k"]:
    if "mass" not in target.kept:
        target.kept["mass"] = mass(target)
    token, label, pixels = target.kept["mass"]
    whole = pixels.new_zeros(math.prod(target.grid_map.grid), classes)
    whole[token, label] = pixels
    return whole


def _lines(
    logits: Float64[Tensor, "l b t k"], tiles: _Tiles
) -> tuple[Float32[Tensor, "n r w kk"], Float32[Tensor, "n r w kk"]]:
    """Logits in the first pixel row of every row run, and their change from pixel row to pixel row.

    In float64 up to here, whatever torch may do to products in float32.
    """
    classes = logits.shape[3]
    fill = -classes % _block(classes)
    grid = logits.unflatten(2, (tiles.first.shape[2], -1))
    start, step = (torch.einsum("brh,lbhwk->lbrwk", one, grid).flatten(0, 1) for one in (tiles.first, tiles.change))
    return F.pad(start.float(), (0, fill), value=NEVER), F.pad(step.float(), (0, fill))


def _launch(kernel: Any, grid: Sequence[int], *arguments: Tensor | int, num_warps: int = 1, **sizes: int) -> None:
    """A multiplication and an addition fuse, as not every version of triton does by itself."""
    kernel[tuple(grid)](*arguments, **sizes, num_warps=num_warps, enable_fp_fusion=True)


def _block(classes: int) -> int:
    """Classes that a lane holds at a time."""
    return 16 if classes <= 16 else 32


@lru_cache(maxsize=2048)  # most data sets have a few image sizes
def _runs(grid_map: GridMap, axis: Axis, whole: bool) -> _Runs:
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
    return _Runs(first, length, low[first], np.minimum(low[first] + 1, last), share[first], change)
