"""Cross-entropy and counts of up-sampled patch logits against a full-resolution mask.

Logits live on the patch grid, the ground truth at original resolution; the logit of a pixel is the bilinear sample of
the grid at the pixel's centre (`geometry.between`). Full-resolution logits exist only for a few rows at a time, or
never. Two makings stand behind this interface: plain PyTorch, the reference for every other and at work on any device,
and compiled C for the evaluation on a CPU, if the machine had a compiler (`making` tells). They differ only at
pixels where two classes' logits are equal up to float32's rounding.
"""

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from segbench.errors import CellError
from segbench.kernels import compiled, plain
from segbench.kernels.plain import LIMIT, upsampled_cross_entropy
from segbench.kernels.target import Target

__all__ = ["LIMIT", "Target", "making", "upsampled_argmax", "upsampled_counts", "upsampled_cross_entropy"]


def making() -> str:
    """What evaluates on a CPU here, in words: compiled C and for which target, or plain PyTorch and why."""
    return compiled.making().says


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> Integer[Tensor, "l H W"]:
    """Class of every pixel at original resolution, valid or not; uint8 up to 256 classes, int16 beyond.

    CellError if a logit is infinite, NaN or beyond 1e37.
    """
    kernels = compiled.making().kernels if logits.device.type == "cpu" else None
    winners = plain.upsampled_argmax(logits, target) if kernels is None else kernels.argmax(logits, target)
    return winners.to(torch.uint8) if logits.shape[2] <= 256 else winners


@torch.no_grad()
def upsampled_counts(
    logits: Float[Tensor, "l t k"], target: Target, confusion: Int64[Tensor, "l k k"] | None = None
) -> Int64[Tensor, "l k 3"]:
    """Pixels per class as (hit, truth, predicted) over the valid pixels of one image; integers that add up over images.

    The pixels by [truth, prediction] are added to `confusion`. CellError if a logit is infinite, NaN or beyond 1e37,
    or unless every valid pixel was counted once.
    """
    kernels = compiled.making().kernels if logits.device.type == "cpu" else None
    count = plain.upsampled_counts if kernels is None else kernels.counts
    counts = count(logits, target, confusion)
    counted = counts[..., 1:].sum(1)
    if (counted != target.pixels).any():
        raise CellError(
            f"{int(counted.min())} of {target.pixels} labelled pixels were counted; "
            f"does the ground truth hold a class beyond the probe's {logits.shape[2]}?"
        )
    return counts
