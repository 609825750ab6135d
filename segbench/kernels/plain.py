"""Up-sampled argmax and counts in plain PyTorch, a few image rows at a time: on any device."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int16, Int64
from torch import Tensor

from segbench.errors import CellError
from segbench.kernels.target import Target

LIMIT = 1e37  # larger logits are refused with infinity and NaN: their differences overflow in float32
ROWS_AT_ONCE = 1 << 19  # full-resolution logits alive at a time: 2 MiB in float32, about one core's cache


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> Int16[Tensor, "l H W"]:
    """Class of every pixel at original resolution, valid or not (clamped at the grid's border); the first on a tie."""
    refuse_unbounded(logits)
    return torch.cat([_argmax(pixels) for _, pixels in _strips(_grid(logits, target), target)], 1)


@torch.no_grad()
def upsampled_counts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None = None
) -> Int64[Tensor, "l b k 3"]:
    """Pixels per class as (hit, truth, predicted) over the valid pixels; pairs (truth, predicted) go to `confusion`."""
    refuse_unbounded(logits)
    sites, images, _, classes = logits.shape
    counts = torch.empty(sites, images, classes, 3, dtype=torch.int64, device=logits.device)
    for image, target in enumerate(targets):
        truth = target.labels[target.valid].long() * classes
        for probe, predicted in enumerate(upsampled_argmax(logits[:, image], target)):
            pairs = torch.bincount(truth + predicted[target.valid], minlength=classes**2)[: classes**2]
            pairs = pairs.view(classes, classes)
            counts[probe, image] = torch.stack([pairs.diag(), pairs.sum(1), pairs.sum(0)], -1)
            if confusion is not None:
                confusion[probe] += pairs
    return counts


def refuse_unbounded(logits: Float[Tensor, "l *n"]) -> None:
    """CellError, naming the probe, for logits that have no argmax."""
    for row, largest in enumerate(logits.abs().amax(tuple(range(1, logits.ndim))).tolist()):
        if not largest <= LIMIT:  # nor is NaN
            raise unbounded(logits, row)


def unbounded(logits: Float[Tensor, "l *n"], row: int) -> CellError:
    """What to raise for a probe whose logits have no argmax."""
    largest = logits[row].abs().max().item()
    return CellError(f"the largest logit of probe {row} is {largest:.3g}; it diverged, try a smaller protocol.lr")


def _grid(logits: Float[Tensor, "l t k"], target: Target) -> Float[Tensor, "l h k w"]:
    """Token order to (row, class, column): classes before columns, so that both up-samplings are one matrix product."""
    h, w = target.rows.shape[1], target.columns.shape[1]
    return logits.float().unflatten(1, (h, w)).transpose(2, 3).contiguous()


def _argmax(pixels: Float[Tensor, "l r k W"]) -> Int16[Tensor, "l r W"]:
    """argmax over k, the first on a tie; class by class is 3x faster on a CPU than argmax over an inner axis."""
    best = pixels[:, :, 0].clone()
    winner = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for label in range(1, pixels.shape[2]):
        logit = pixels[:, :, label]
        winner.masked_fill_(logit > best, label)
        torch.maximum(best, logit, out=best)
    return winner


def _strips(grid: Float[Tensor, "l h k w"], target: Target) -> Iterator[tuple[slice, Float[Tensor, "l r k W"]]]:
    """The up-sampled logits, a few rows of the image at a time."""
    sites, h, classes, w = grid.shape
    height, width = target.valid.shape
    step = max(1, ROWS_AT_ONCE // (sites * classes * width))
    flat = grid.reshape(sites, h, classes * w)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        strip = (target.rows[rows] @ flat).reshape(-1, w) @ target.columns.T
        yield rows, strip.reshape(sites, -1, classes, width)
