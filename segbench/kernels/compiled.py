"""The kernels that build.py compiles: up-sampled cross-entropy, argmax and counts on a CPU."""

import ctypes
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int16, Int32, Int64, UInt16
from torch import Tensor

from segbench.kernels import build, tables
from segbench.kernels.plain import LIMIT, unbounded
from segbench.kernels.progression import fits
from segbench.kernels.target import Target

_log = logging.getLogger(__name__)


class NotCompiled(Exception):
    """There are no compiled kernels that this machine can run; the message says why."""


@dataclass(frozen=True)
class Making:
    """Which kernels train and evaluate probes here, and in words that a reader of a log understands."""

    says: str
    kernels: "Kernels | None"  # None: plain PyTorch


class Plan(NamedTuple):
    """One image's ground truth as the loss needs it, the same for all probes and epochs."""

    bits: UInt16[np.ndarray, "H16 W"]  # whether pixels are valid, 16 rows to a number, the first in the lowest bit
    place: Int32[np.ndarray, "n 2"]  # (patch, class), ascending
    pixels: Float64[np.ndarray, " n"]  # number of the class's pixels, weighted by the up-sampling from the patch


class Kernels:
    """The functions of a compiled library for one target; safe to call from several threads at once."""

    def __init__(self, library: ctypes.CDLL, target: str) -> None:
        self.target = target
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        self._evaluate = library[f"segbench_evaluate_{target}"]
        self._evaluate.restype = integer
        self._evaluate.argtypes = [pointer, *[integer] * 4, ctypes.c_float, *[pointer] * 4, *[integer] * 2]
        self._evaluate.argtypes += [pointer] * 5
        self._loss = library[f"segbench_loss_{target}"]
        self._loss.restype = integer
        self._loss.argtypes = [pointer, *[integer] * 4, ctypes.c_float, *[pointer] * 5, *[integer] * 3]
        self._loss.argtypes += [*[pointer] * 3, integer, *[pointer] * 2]
        self._plan = library[f"segbench_plan_{target}"]
        self._plan.restype = integer
        self._plan.argtypes = [*[pointer] * 2, *[integer] * 5, *[pointer] * 7]

    def loss_and_gradient(
        self, logits: Float[Tensor, "l t k"], target: Target
    ) -> tuple[Float64[Tensor, " l"], Float32[Tensor, "l t k"]]:
        """As `progression.loss_and_gradient`."""
        logits = logits.detach().float().contiguous()
        if "plan" not in target.kept:
            target.kept["plan"] = self.plan(target)
        plan: Plan = target.kept["plan"]
        (h, w), (height, width) = target.grid_map.grid, target.grid_map.image
        rows, runs = tables.axis(target.grid_map, 0), tables.runs(target.grid_map)
        probes, tokens, classes = logits.shape  # what the C code trusts
        assert tokens == h * w
        assert plan.bits.shape == (-(-height // 16), width)
        fits(target, classes)
        losses = torch.empty(probes, dtype=torch.float64)
        gradient = torch.empty_like(logits)

        def work(part: slice) -> int:
            some = logits[part]
            return self._loss(
                *(some.data_ptr(), len(some), h, w, classes, LIMIT),
                *(rows.low.ctypes.data, rows.way32.ctypes.data),
                *(runs.cell.ctypes.data, runs.start.ctypes.data, runs.way.ctypes.data, len(runs.cell)),
                *(height, width, plan.bits.ctypes.data),
                *(plan.place.ctypes.data, plan.pixels.ctypes.data, len(plan.pixels)),
                *(losses[part].data_ptr(), gradient[part].data_ptr()),
            )

        if any(result for _, result in _in_parts(probes, work)):
            raise MemoryError("no memory for the loss kernel")
        return losses, gradient

    def plan(self, target: Target) -> "Plan":
        """The loss's view of a ground truth; kept by the Target, which it makes a tenth larger."""
        labels, valid = target.labels.short().contiguous(), target.valid.contiguous()
        (h, w), (height, width), classes = target.grid_map.grid, target.grid_map.image, target.classes
        rows, columns = (tables.axis(target.grid_map, axis) for axis in (0, 1))
        assert labels.shape == valid.shape == (height, width)  # what the C code trusts
        assert valid.dtype == torch.bool
        assert int(labels.min()) >= 0
        bits = np.empty((-(-height // 16), width), np.uint16)
        place, pixels = np.empty((h * w * classes, 2), np.int32), np.empty(h * w * classes)
        count = self._plan(
            *(labels.data_ptr(), valid.data_ptr(), height, width, h, w, classes),
            *(rows.whole.ctypes.data, rows.way.ctypes.data, columns.whole.ctypes.data, columns.way.ctypes.data),
            *(bits.ctypes.data, place.ctypes.data, pixels.ctypes.data),
        )
        if count < 0:
            raise MemoryError("no memory for the loss kernel's plan")
        return Plan(bits, place[:count].copy(), pixels[:count].copy())

    def argmax(self, logits: Float[Tensor, "l t k"], target: Target) -> Int16[Tensor, "l H W"]:
        """As `plain.upsampled_argmax`; another class only where two logits are equal up to float32's rounding."""
        winners = torch.empty(len(logits), *target.grid_map.image, dtype=torch.int16)
        self._run(logits, target, winners, None, None)
        return winners

    def counts(
        self, logits: Float[Tensor, "l t k"], target: Target, confusion: Int64[Tensor, "l k k"] | None
    ) -> Int64[Tensor, "l k 3"]:
        """As `plain.upsampled_counts`."""
        counts = torch.zeros(len(logits), logits.shape[2], 3, dtype=torch.int64)
        self._run(logits, target, None, counts, confusion)
        return counts

    def _run(
        self,
        logits: Float[Tensor, "l t k"],
        target: Target,
        winners: Int16[Tensor, "l H W"] | None,
        counts: Int64[Tensor, "l k 3"] | None,
        confusion: Int64[Tensor, "l k k"] | None,
    ) -> None:
        """Every probe's rows of the results are its own, so that the probes share the threads that torch may use."""
        logits = logits.detach().float().contiguous()
        labels, valid = target.labels.short().contiguous(), target.valid.contiguous()
        (h, w), (height, width) = target.grid_map.grid, target.grid_map.image
        rows, columns = (tables.axis(target.grid_map, axis) for axis in (0, 1))
        first = (rows.seen, columns.seen) if winners is None else (rows.whole, columns.whole)
        probes, tokens, classes = logits.shape  # what the C code trusts
        assert tokens == h * w
        assert classes <= torch.iinfo(torch.int16).max
        assert labels.shape == valid.shape == (height, width)
        assert valid.dtype == torch.bool
        if confusion is not None:
            assert confusion.shape == (probes, classes, classes)
            assert confusion.dtype == torch.int64
            assert confusion.is_contiguous()

        def evaluate(part: slice) -> int:
            some = logits[part]
            return self._evaluate(
                *(some.data_ptr(), len(some), h, w, classes, LIMIT),
                *(first[0].ctypes.data, rows.way32.ctypes.data, first[1].ctypes.data, columns.way32.ctypes.data),
                *(height, width, labels.data_ptr(), valid.data_ptr()),
                *(None if out is None else out[part].data_ptr() for out in (winners, counts, confusion)),
            )

        for part, result in _in_parts(probes, evaluate):
            if result == -2:
                raise MemoryError("no memory for the evaluation kernel")
            if result >= 0:
                raise unbounded(logits, part.start + result)


def _in_parts(probes: int, work: Callable[[slice], int]) -> list[tuple[slice, int]]:
    """What the work returns for each part of the probes, one part for every thread that torch may use."""
    threads = max(1, min(torch.get_num_threads(), probes))
    edges = [probes * part // threads for part in range(threads + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(edges)]
    if threads == 1:
        return [(part, work(part)) for part in parts]
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
        return list(zip(parts, pool.map(work, parts), strict=True))


def load(path: Path, target: str | None = None) -> Kernels:
    """The kernels of a library for a target, None for the best that this machine runs; NotCompiled if it runs none."""
    if not path.exists():
        raise NotCompiled("not compiled")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotCompiled(f"{path.name} cannot be loaded: {error}") from error
    library.segbench_sources.restype = ctypes.c_char_p
    if library.segbench_sources().decode() != build.digest():
        raise NotCompiled(f"{path.name} was compiled from other sources")
    for name in build.TARGETS if target is None else (target,):
        try:
            supported = library[f"segbench_supports_{name}"]
        except AttributeError:  # a target of another architecture
            continue
        if supported():
            return Kernels(library, name)
    raise NotCompiled(f"{path.name} has nothing for this machine")


@cache
def making() -> Making:
    """What trains and evaluates probes on a CPU here; decided, and told to the log, once."""
    try:
        kernels = load(build.LIBRARY)
        made = Making(f"compiled C, {kernels.target}", kernels)
    except NotCompiled as reason:
        made = Making(f"plain PyTorch ({reason}; with a C compiler: python -m segbench.kernels)", None)
    _log.info("evaluation on a CPU: %s", made.says)
    return made
