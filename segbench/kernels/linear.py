"""Frozen features times a probe's weights: float32 and accumulated in float32 whatever the features are, any device.

Plain PyTorch is the reference. On a CPU the same float32 product may come from oneDNN, which is quicker than MKL on
some machines. On a GPU features in bfloat16 meet the weights as a sum of three bfloat16 parts, which hold all 24 bits
of a float32. Either is tried against float64 before it is used; an error decides, never a clock, so that equal runs
stay equal to the bit.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

ROWS, ROWS_ELSEWHERE = {"cpu": 640}, 1 << 14  # tokens at a time: on a CPU 10 MB of float32 copies at 4096 channels
WORTH = 1 << 20  # multiplications; for fewer, oneDNN saves less than it costs to set it
PARTS = 3  # bfloat16 has 8 bits of a float32's 24
LARGE = (512, 2048, 150)  # tokens, channels and classes whose product is worth a trial
TOLERANCE = 2e-6  # relative; float32's products are off by 3e-7 to 6e-7 at 4096 channels, TF32's by 3e-4
ONEDNN: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # the module is put together at import

_log = logging.getLogger(__name__)

_Product = Callable[[Tensor, Tensor], Tensor]


class Making(NamedTuple):
    """Where products come from."""

    quick: bool  # not from plain PyTorch
    says: str


def making(device: torch.device | str = "cpu") -> str:
    """What multiplies features by many probes here, or why it is plain PyTorch; small products always are."""
    return _making(str(device)).says


def linear(
    features: Float[Tensor, "n d"], weight: Float32[Tensor, "k d"], bias: Float32[Tensor, " k"]
) -> Float32[Tensor, "n k"]:
    """Logits of n tokens; differentiable in weight and bias, not in the features."""
    assert not features.requires_grad, "features are frozen"
    return _Linear.apply(features, weight, bias)  # type: ignore[no-any-return]


def split(numbers: Float32[Tensor, "n d"]) -> BFloat16[Tensor, "p n d"]:
    """Numbers as a sum of bfloat16, largest parts first; exact down to 1e-33."""
    parts = []
    for _ in range(PARTS):
        parts.append(numbers.bfloat16())
        numbers = numbers - parts[-1]
    return torch.stack(parts)


def split_logits(
    features: BFloat16[Tensor, "n d"], weight: Float32[Tensor, "k d"], bias: Float32[Tensor, " k"], product: _Product
) -> Float32[Tensor, "n k"]:
    """One product with all parts of the weights, so that the features are read once."""
    parts = product(features, split(weight).flatten(0, 1).T)
    return parts.unflatten(1, (PARTS, -1)).sum(1).add_(bias)


def split_gradient(
    slope: Float32[Tensor, "n k"], features: BFloat16[Tensor, "n d"], product: _Product
) -> Float32[Tensor, "k d"]:
    """As `split_logits`, with all parts of the logits' gradient."""
    parts = product(split(slope).transpose(1, 2).flatten(0, 1), features)
    return parts.unflatten(0, (PARTS, -1)).sum(0)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        if _splits(features):
            return split_logits(features, weight, bias, _tensor_cores)
        logits = weight.new_empty(len(features), len(weight))
        for rows in _bands(features):
            some = features[rows].float()
            with _kernels(some, len(weight)):
                torch.addmm(bias, some, weight.T, out=logits[rows])
        return logits

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[None, Tensor, Tensor]:
        (features,), slope = ctx.saved_tensors, outputs[0]
        if _splits(features):
            return None, split_gradient(slope, features, _tensor_cores), slope.sum(0)
        gradient = slope.new_zeros(slope.shape[1], features.shape[1])
        for rows in _bands(features):
            some = features[rows].float()
            with _kernels(some, slope.shape[1]):
                gradient.addmm_(slope[rows].T, some)
        return None, gradient, slope.sum(0)


def _bands(features: Float[Tensor, "n d"]) -> Iterator[slice]:
    """Slices of about equal length: a short last one would take nearly as long as the others."""
    count = -(-len(features) // ROWS.get(features.device.type, ROWS_ELSEWHERE))
    for band in range(count):
        yield slice(len(features) * band // count, len(features) * (band + 1) // count)


@contextmanager
def _kernels(features: Float32[Tensor, "n d"], classes: int) -> Iterator[None]:
    """The setting under which torch multiplies float32 here, restored behind.

    It is the process's: another thread's product may see it meanwhile. It then comes from the same kernels, and those
    were tried.
    """
    rows, width = features.shape
    if features.device.type == "cpu":
        quick = rows * width * classes >= WORTH and onednn(1 << (rows - 1).bit_length(), width, classes)
        setting = _precision(ONEDNN, "bf16") if quick else nullcontext()
    elif features.device.type == "cuda":
        setting = _precision(torch.backends.cuda.matmul, "ieee")  # TF32 has 11 bits
    else:
        setting = nullcontext()
    with setting:
        yield


@cache
def onednn(rows: int, width: int, classes: int) -> bool:
    """Whether oneDNN's products of this size differ from plain PyTorch's, but by no more than float32's rounding.

    What is asked of it is called "bf16". A CPU without bfloat16's matrix unit (AMX) has no use for the permission and
    multiplies in float32; one with the unit rounds, which shows here.
    """
    made = _tried_onednn(rows, width, classes)
    _tell(f"probes' products on a CPU: {made.says}")
    return made.quick


def _tried_onednn(rows: int, width: int, classes: int) -> Making:
    if not torch.backends.mkldnn.is_available():
        return Making(False, "plain PyTorch, which has no oneDNN")
    features, weight, slope = _trial(rows, width, classes, "cpu")
    plain, plain_gradient = features @ weight.T, slope.T @ features
    quick, quick_gradient = _under_onednn(features, weight.T), _under_onednn(slope.T, features)
    off = max(_off(quick, features, weight.T), _off(quick_gradient, slope.T, features))
    if torch.equal(quick, plain) and torch.equal(quick_gradient, plain_gradient):
        return Making(False, "plain PyTorch")
    if off > TOLERANCE:
        return Making(False, f"plain PyTorch, as oneDNN's are off by {off:.0e}")
    return Making(True, "oneDNN, in float32")


def _under_onednn(left: Float32[Tensor, "n d"], right: Float32[Tensor, "d k"]) -> Float32[Tensor, "n k"]:
    with _precision(ONEDNN, "bf16"):
        return left @ right


@contextmanager
def _precision(products: Any, wanted: str) -> Iterator[None]:
    """https://docs.pytorch.org/docs/stable/notes/mkldnn.html tells the settings."""
    before = products.fp32_precision
    products.fp32_precision = wanted
    try:
        yield
    finally:
        products.fp32_precision = before


@cache
def _making(device: str) -> Making:
    kind = torch.device(device).type
    if kind == "cuda":
        return _tried_cores(device)
    return _tried_onednn(*LARGE) if kind == "cpu" else Making(False, "plain PyTorch")


def _splits(features: Float[Tensor, "n d"]) -> bool:
    if features.device.type != "cuda" or features.dtype != torch.bfloat16:
        return False
    return _cores_are_exact(str(features.device))


@cache
def _cores_are_exact(device: str) -> bool:
    made = _tried_cores(device)
    _tell(f"probes' products on {device}: {made.says}")
    return made.quick


def _tried_cores(device: str) -> Making:
    features, weight, slope = _trial(*LARGE, device)
    features = features.bfloat16()
    logits = split_logits(features, weight, weight.new_zeros(len(weight)), _tensor_cores)
    gradient = split_gradient(slope, features, _tensor_cores)
    off = max(_off(logits, features, weight.T), _off(gradient, slope.T, features))
    if off > TOLERANCE:
        return Making(False, f"plain PyTorch, as three bfloat16 parts are off by {off:.0e}")
    return Making(True, "weights in three bfloat16 parts, where features are bfloat16")


def _tensor_cores(left: BFloat16[Tensor, "n d"], right: BFloat16[Tensor, "d k"]) -> Float32[Tensor, "n k"]:
    """Products are exact and their sums float32: https://docs.pytorch.org/docs/stable/generated/torch.mm.html."""
    return torch.mm(left, right, out_dtype=torch.float32)


def _trial(
    rows: int, width: int, classes: int, device: str
) -> tuple[Float32[Tensor, "n d"], Float32[Tensor, "k d"], Float32[Tensor, "n k"]]:
    """Features, weights and a gradient of logits, the same in every process."""
    draw = torch.Generator().manual_seed(0)
    sizes = (rows, width), (classes, width), (rows, classes)
    features, weight, slope = (torch.randn(size, generator=draw).to(device) for size in sizes)
    return features, weight, slope


def _off(product: Float32[Tensor, "n k"], left: Float[Tensor, "n d"], right: Float[Tensor, "d k"]) -> float:
    """Relative error."""
    exact = left.double() @ right.double()
    return float((product - exact).norm() / exact.norm())


@cache  # once
def _tell(says: str) -> None:
    _log.info("%s", says)
