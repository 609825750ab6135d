"""Cross-entropy and counts of up-sampled patch logits against a full-resolution mask.

Logits live on the patch grid, the ground truth at original resolution; the logit of a pixel is the bilinear sample of
the grid at the pixel's centre (`geometry.between`). Full-resolution logits exist only for a few rows at a time, or
never. Three makings stand behind this interface: plain PyTorch, the reference for the others and at work anywhere,
compiled C on a CPU, if the machine had a compiler, and Triton on a GPU, if it proves itself there (`making` tells).
They differ by float32's rounding, and in the prediction only at pixels where two classes' logits are equal up to it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int64, Integer
from torch import Tensor

from segbench.errors import CellError
from segbench.kernels import compiled, cuda, plain, progression
from segbench.kernels.plain import LIMIT
from segbench.kernels.target import Target

__all__ = ["LIMIT", "Target", "making", "upsampled_argmax", "upsampled_counts", "upsampled_cross_entropy"]


def making(device: torch.device | str = "cpu") -> str:
    """What trains and evaluates probes here: compiled C and for which target, Triton, or plain PyTorch and why."""
    return _making(torch.device(device)).says


def upsampled_cross_entropy(logits: Float[Tensor, "l b t k"], targets: Sequence[Target]) -> Float[Tensor, "l b"]:
    """Summed cross-entropy over the valid pixels of each of b images, for l probes; differentiable in the logits.

    NaN for a probe on an image where a logit is infinite, NaN or beyond 1e37. CellError if a ground truth holds a class
    beyond the probes'.
    """
    return _CrossEntropy.apply(logits, targets)  # type: ignore[no-any-return]


@torch.no_grad()
def upsampled_argmax(logits: Float[Tensor, "l t k"], target: Target) -> Integer[Tensor, "l H W"]:
    """Class of every pixel at original resolution, valid or not; uint8 up to 256 classes, int16 beyond.

    CellError if a logit is infinite, NaN or beyond 1e37.
    """
    kernels = _making(logits.device).kernels
    winners = plain.upsampled_argmax(logits, target) if kernels is None else kernels.argmax(logits, target)
    return winners.to(torch.uint8) if logits.shape[2] <= 256 else winners


@torch.no_grad()
def upsampled_counts(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None = None
) -> Int64[Tensor, "l b k 3"]:
    """Pixels per class as (hit, truth, predicted) over the valid pixels of each of b images, for l probes.

    The pixels of all images by [truth, prediction] are added to `confusion`. CellError if a logit is infinite, NaN or
    beyond 1e37, or unless every valid pixel was counted once.
    """
    kernels = _making(logits.device).kernels
    count = plain.upsampled_counts if kernels is None else kernels.counts
    counts = count(logits, targets, confusion)
    least = counts[..., 1:].sum(2).amin((0, 2)).tolist()
    for counted, target in zip(least, targets, strict=True):
        if counted != target.pixels:
            raise CellError(
                f"{counted} of {target.pixels} labelled pixels were counted; "
                f"does the ground truth hold a class beyond the probe's {logits.shape[3]}?"
            )
    return counts


def _making(device: torch.device) -> compiled.Making | cuda.Making:
    if device.type == "cuda":
        return cuda.making(str(device))
    return compiled.making() if device.type == "cpu" else compiled.Making("plain PyTorch", None)


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradient come from one walk over the image, so that nothing but the gradient waits for the backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        kernels = _making(logits.device).kernels
        walk = _image_by_image if kernels is None else kernels.losses_and_gradients
        losses, gradients = walk(logits, targets)
        ctx.save_for_backward(gradients)
        return losses.to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * outputs[0][..., None, None], None


def _image_by_image(
    logits: Float[Tensor, "l b t k"], targets: Sequence[Target]
) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
    losses = torch.empty(logits.shape[:2], dtype=torch.float64, device=logits.device)
    gradients = torch.empty_like(logits, dtype=torch.float32)
    for image, target in enumerate(targets):
        losses[:, image], gradients[:, image] = progression.loss_and_gradient(logits[:, image], target)
    return losses, gradients
