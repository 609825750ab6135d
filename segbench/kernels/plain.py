"""Up-sampled cross-entropy and argmax in plain PyTorch, a few image rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from segbench.geometry import seen_mask, upsampling
from segbench.types import IGNORE, GridMap

ROWS_AT_ONCE = 1 << 19  # full-resolution logits alive at a time: 2 MiB in float32, about one core's cache


@dataclass(frozen=True)
class Target:
    """What the loss and the counts of one image need beside the logits."""

    rows: Float[Tensor, "H h"]  # bilinear weights of every pixel row over the grid rows
    columns: Float[Tensor, "W w"]
    grid_map: GridMap
    labels: Int[Tensor, "H W"]  # class ids, 0 where not valid
    valid: Bool[Tensor, "H W"]  # labelled and seen by the model

    @classmethod
    def of(cls, grid_map: GridMap, mask: UInt8[np.ndarray, "H W"], device: torch.device | str = "cpu") -> "Target":
        """The ground truth as it is, and the up-sampling of its grid; ignored and unseen pixels are not valid."""
        valid = torch.from_numpy((mask != IGNORE) & seen_mask(grid_map)).to(device)
        labels = torch.from_numpy(mask.astype(np.int64)).to(device)
        rows, columns = (_weights(grid_map, axis).to(device) for axis in (0, 1))
        return cls(rows, columns, grid_map, labels * valid, valid)

    @property
    def pixels(self) -> int:
        """Number of valid pixels."""
        return int(self.valid.sum())


def upsampled_cross_entropy(logits: Float[Tensor, "l t k"], target: Target) -> Float[Tensor, " l"]:
    """Summed cross-entropy over the valid pixels of one image, for each of l probes; differentiable in the logits."""
    return _CrossEntropy.apply(logits, target)  # type: ignore[no-any-return]


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> UInt8[Tensor, "l H W"]:
    """Class of every pixel at original resolution, valid or not (clamped at the grid's border)."""
    return torch.cat([_argmax(pixels) for _, pixels in _strips(_grid(logits, target), target)], 1)


@torch.no_grad()
def upsampled_counts(prediction: UInt8[Tensor, "l H W"], target: Target, classes: int) -> Int[Tensor, "l k 3"]:
    """Pixels per class as (hit, truth, predicted) over the valid pixels; integers that add up over images."""
    truth = target.labels[target.valid]
    predicted = prediction[:, target.valid].long()
    offset = torch.arange(len(prediction), device=prediction.device)[:, None] * classes
    size = len(prediction) * classes

    def count(ids: Int[Tensor, "l p"], keep: Bool[Tensor, "l p"] | None = None) -> Int[Tensor, "l k"]:
        flat = (ids + offset) if keep is None else (ids + offset)[keep]
        return torch.bincount(flat.flatten(), minlength=size).reshape(-1, classes)

    truths = truth.expand_as(predicted)
    return torch.stack([count(truths, predicted == truths), count(truths), count(predicted)], -1)


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradient in the same walk over the rows, so that no full-resolution tensor is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Target) -> Tensor:
        grid = _grid(logits.detach(), target)  # l h k w
        gradient = torch.zeros_like(grid)
        loss = torch.zeros(len(grid), dtype=torch.float64, device=grid.device)
        for rows, pixels in _strips(grid, target):  # l r k W
            labels, valid = target.labels[rows], target.valid[rows].to(pixels.dtype)
            index = labels[None, :, None].expand(len(grid), -1, -1, -1)
            top = pixels.amax(2, keepdim=True)
            right = pixels.gather(2, index)
            pixels = pixels.sub_(top).exp_()
            total = pixels.sum(2, keepdim=True)
            loss += ((total.log() + top - right)[:, :, 0] * valid).sum((1, 2), dtype=torch.float64)
            weight = valid[None, :, None]
            pixels.mul_(weight / total).scatter_add_(2, index, -weight.expand_as(right))
            flat = (pixels.flatten(0, 2) @ target.columns).reshape(len(grid), pixels.shape[1], -1)  # l r (k w)
            gradient += (target.rows[rows].T @ flat).reshape_as(gradient)
        ctx.save_for_backward(gradient.transpose(2, 3).flatten(1, 2))  # l t k
        return loss.to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0][:, None, None], None


@lru_cache(maxsize=1024)  # most data sets have a few image sizes
def _weights(grid_map: GridMap, axis: Literal[0, 1]) -> Float[Tensor, "n g"]:
    return torch.from_numpy(upsampling(grid_map, axis)).float()


def _grid(logits: Float[Tensor, "l t k"], target: Target) -> Float[Tensor, "l h k w"]:
    """Token order to (row, class, column): classes before columns, so that both up-samplings are one matrix product."""
    h, w = target.rows.shape[1], target.columns.shape[1]
    return logits.float().unflatten(1, (h, w)).transpose(2, 3).contiguous()


def _argmax(pixels: Float[Tensor, "l r k W"]) -> UInt8[Tensor, "l r W"]:
    """argmax over k, the first on a tie; class by class is 3x faster on a CPU than argmax over an inner axis."""
    best = pixels[:, :, 0].clone()
    winner = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
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
