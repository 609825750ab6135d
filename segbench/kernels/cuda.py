"""Up-sampled cross-entropy and argmax on a GPU, in Triton: full-resolution logits are never in memory.

The pixels of an image fall into tiles: at most 32 rows by 32 columns between the same four patches. From row to row of
a tile a class's logit changes by the same amount, so that its exponential is a geometric progression: one
multiplication per pixel and class where others take an exponential. The ground truth enters linearly, as in
`progression`. Sums are partial per tile and added in a fixed order: no
atomics but torch's on integers, the same bits every time.

Neighbours in a batch whose grids are alike share their launches, as far as `MEMORY` goes: what a call takes beside
logits, ground truths and results stays within it, or is what one probe on one image needs.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from subprocess import SubprocessError
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int16, Int64
from torch import Tensor

from segbench.kernels import plain, progression
from segbench.kernels.plain import LIMIT, refuse_unbounded
from segbench.kernels.progression import fits, mass
from segbench.kernels.target import Target
from segbench.kernels.tiles import COLUMNS, ROWS, Tiles
from segbench.types import GridMap

MEMORY = 1 << 29  # bytes; a probe on an image needs about 10 MB (150 classes, 24 x 24 patches, 512 x 683 pixels)
TALLIED = 4096  # pixels that a program counts
LOG2 = math.log(2)
NEVER = -1e30  # logit of the classes that fill up a block
TOLERANCE, NEAR_TIES = 2e-5, 8  # relative error, and differences in counts, that rounding may cause at the first trial

Size = tuple[int, int]  # height, width

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether triton is installed; it comes with torch's builds for CUDA."""
    return find_spec("triton") is not None


@torch.no_grad()
def losses_and_gradients(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target]
) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
    """As `progression.loss_and_gradient`, for b images."""
    for target in targets:
        fits(target, logits.shape[3])
    losses = torch.empty(logits.shape[:2], dtype=torch.float64, device=logits.device)
    gradients = torch.empty_like(logits, dtype=torch.float32)
    for part, some in _parts(logits, targets, _bytes_of_loss):
        losses[part], gradients[part] = _losses_and_gradients(logits[part].float(), some)
    return losses, gradients


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> Int16[Tensor, "l H W"]:
    """As `plain.upsampled_argmax`; another class only where two logits are equal up to float32's rounding."""
    refuse_unbounded(logits)
    out = torch.empty(len(logits), *target.grid_map.image, dtype=torch.int16, device=logits.device)
    tiles = _tiles([target], whole=True)
    for (probes, _), _ in _parts(logits[:, None], [target], _bytes_of_counts):
        out[probes] = _winners(logits[probes, None], tiles).unflatten(1, target.grid_map.image)
    return out


@torch.no_grad()
def upsampled_counts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None = None
) -> Int64[Tensor, "l b k 3"]:
    """As `plain.upsampled_counts`."""
    refuse_unbounded(logits)
    counts = torch.empty(*logits.shape[:2], logits.shape[3], 3, dtype=torch.int64, device=logits.device)
    for part, some in _parts(logits, targets, _bytes_of_counts):
        counts[part] = _counts(logits[part], some, None if confusion is None else confusion[part[0]])
    return counts


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


def _parts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], bytes_of: Callable[[Size, Size, int], int]
) -> Iterator[tuple[tuple[slice, slice], Sequence[Target]]]:
    """The probes and images that share launches: these need images with grids alike, and the memory its bound."""
    begin, (probes, images, _, classes) = 0, logits.shape
    assert len(targets) == images
    for grid, alike in groupby(targets, lambda target: target.grid_map.grid):
        some = list(alike)
        height, width = (max(target.grid_map.image[axis] for target in some) for axis in (0, 1))
        pairs = max(1, MEMORY // bytes_of(grid, (height, width), classes))
        deep, wide = min(probes, pairs), max(1, pairs // probes)
        for at in range(0, len(some), wide):
            chosen = some[at : at + wide]
            for row in range(0, probes, deep):
                yield (slice(row, row + deep), slice(begin + at, begin + at + len(chosen))), chosen
        begin += len(some)


def _bytes_of_loss(grid: Size, image: Size, classes: int) -> int:
    """What one probe on one image takes, at most: logits by run, the gradient's parts by tile, LSE by pixel."""
    (h, w), (height, width) = grid, image
    r, c = h + 1 + height // ROWS, w + 1 + width // COLUMNS
    return (classes + 31) * (16 * r * c + 48 * r * w + 48 * h * w) + 5 * height * width


def _bytes_of_counts(grid: Size, image: Size, classes: int) -> int:
    """The same for the counts: logits by run, counts by block, of every pixel its winner and the number of its pair."""
    (h, w), (height, width) = grid, image
    r, blocks = h + 1 + height // ROWS, height * width // TALLIED + 1
    return (classes + 31) * (32 * r * w + 16 * h * w + 24 * blocks) + 8 * classes**2 + 30 * height * width


def _counts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None
) -> Int64[Tensor, "l b k 3"]:
    from segbench.kernels import cuda_kernels

    (sites, b, _, classes), tiles = logits.shape, _tiles(targets, whole=True)
    winners = _winners(logits, tiles)
    labels = torch.cat([target.labels.flatten() for target in targets])
    valid = torch.cat([target.valid.flatten() for target in targets])
    ends = np.cumsum([target.valid.numel() for target in targets])
    begins = np.append(0, ends[:-1])[:, None] + np.arange(0, np.diff(ends, prepend=0).max(), TALLIED)
    blocks = np.stack([begins, np.broadcast_to(ends[:, None], begins.shape)], -1)  # empty ones fill up the table
    bins = 1 << classes.bit_length()  # a power of two, and one at least for what does not count
    counts = winners.new_empty(sites * b, blocks.shape[1], 3, bins, dtype=torch.int32)
    where = torch.from_numpy(blocks).to(winners.device)
    arguments = (winners, labels, valid.view(torch.uint8), where, counts, b, tiles.pixels, classes)
    _launch(cuda_kernels.tally, counts.shape[:2], *arguments, BINS=bins, BLOCK=TALLIED, num_warps=4)
    if confusion is not None:
        rows = torch.arange(sites, device=labels.device)[:, None] * classes + labels
        pairs = torch.where(valid & (labels < classes), rows * classes + winners, confusion.numel())
        confusion += torch.bincount(pairs.flatten(), minlength=confusion.numel() + 1)[:-1].view_as(confusion)
    return counts.sum(1)[..., :classes].transpose(1, 2).unflatten(0, (sites, b))


def _winners(logits: Float[Tensor, "l b t k"], tiles: Tiles) -> Int16[Tensor, "l p"]:
    """Class of every pixel of all images, one image after the other."""
    from segbench.kernels import cuda_kernels

    out = torch.empty(len(logits), tiles.pixels, dtype=torch.int16, device=logits.device)
    start, step = _lines(logits.double(), tiles)
    (r, c), block = tiles.shape, _block(logits.shape[3])
    arguments = (start, step, *tiles.tables, out, logits.shape[1], r, c, *start.shape[2:], tiles.pixels)
    _launch(cuda_kernels.winners, (len(start), r * c), *arguments, BK=block, BX=COLUMNS, BY=ROWS)
    return out


def _losses_and_gradients(
    logits: Float32[Tensor, "l b t k"], targets: Sequence[Target]
) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
    from segbench.kernels import cuda_kernels

    sites, b, _, classes = logits.shape
    sound = logits.abs().amax((2, 3)) <= LIMIT  # nor is NaN
    tiles, labels = _tiles(targets, whole=False), _masses(targets, classes)
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


def _tiles(targets: Sequence[Target], whole: bool) -> Tiles:
    return Tiles.of([target.grid_map for target in targets], whole, targets[0].valid.device)


def _masses(targets: Sequence[Target], classes: int) -> Float64[Tensor, "b t k"]:
    for target in targets:
        if "mass" not in target.kept:
            target.kept["mass"] = mass(target)
    kept = [target.kept["mass"] for target in targets]
    token, label, pixels = (torch.cat(part) for part in zip(*kept, strict=True))
    image = torch.from_numpy(np.repeat(np.arange(len(kept)), [len(one[0]) for one in kept])).to(token.device)
    whole = pixels.new_zeros(len(targets), math.prod(targets[0].grid_map.grid), classes)
    whole[image, token, label] = pixels
    return whole


def _lines(
    logits: Float64[Tensor, "l b t k"], tiles: Tiles
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
