"""The kernels that build.py compiles: up-sampled cross-entropy, argmax and counts on a CPU."""

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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
        self._evaluate.argtypes = [pointer, *[integer] * 3, ctypes.c_float, *[pointer] * 4, *[integer] * 2]
        self._evaluate.argtypes += [pointer] * 5
        self._loss = library[f"segbench_loss_{target}"]
        self._loss.restype = integer
        self._loss.argtypes = [pointer, *[integer] * 4, ctypes.c_float, *[pointer] * 5, *[integer] * 3]
        self._loss.argtypes += [*[pointer] * 3, integer, *[pointer] * 2]
        self._plan = library[f"segbench_plan_{target}"]
        self._plan.restype = integer
        self._plan.argtypes = [*[pointer] * 2, *[integer] * 5, *[pointer] * 7]

    def losses_and_gradients(
        self, logits: Float[Tensor, "l b t k"], targets: Sequence[Target]
    ) -> tuple[Float64[Tensor, "l b"], Float32[Tensor, "l b t k"]]:
        """As `progression.loss_and_gradient`, for b images."""
        logits = logits.detach().float().contiguous()
        for target in targets:
            fits(target, logits.shape[3])
        new = [target for target in targets if "plan" not in target.kept]
        for target, plan in zip(new, _each(len(new), lambda at: self.plan(new[at])), strict=True):
            target.kept["plan"] = plan
        losses = torch.empty(logits.shape[:2], dtype=torch.float64)
        gradients = torch.empty_like(logits)

        def work(probe: int, image: int) -> int:
            return self._walk(logits[probe, image], targets[image], losses[probe, image], gradients[probe, image])

        if any(_each_pair(logits, targets, work)):
            raise MemoryError("no memory for the loss kernel")
        return losses, gradients

    def _walk(
        self,
        logits: Float32[Tensor, "t k"],
        target: Target,
        loss: Float64[Tensor, ""],
        gradient: Float32[Tensor, "t k"],
    ) -> int:
        plan: Plan = target.kept["plan"]
        (h, w), (height, width) = target.grid_map.grid, target.grid_map.image
        rows, runs = tables.axis(target.grid_map, 0), tables.runs(target.grid_map)
        tokens, classes = logits.shape  # what the C code trusts
        assert tokens == h * w
        assert plan.bits.shape == (-(-height // 16), width)
        return self._loss(
            *(logits.data_ptr(), 1, h, w, classes, LIMIT),
            *(rows.low.ctypes.data, rows.way32.ctypes.data),
            *(runs.cell.ctypes.data, runs.start.ctypes.data, runs.way.ctypes.data, len(runs.cell)),
            *(height, width, plan.bits.ctypes.data),
            *(plan.place.ctypes.data, plan.pixels.ctypes.data, len(plan.pixels)),
            *(loss.data_ptr(), gradient.data_ptr()),
        )

    def plan(self, target: Target) -> "Plan":
        """The loss's view of a ground truth; kept by the Target, which it makes a tenth larger."""
        labels, valid = target.labels.short().contiguous(), target.valid.contiguous()
        (h, w), (height, width), classes = target.grid_map.grid, target.grid_map.image, target.classes
        rows, columns = (tables.axis(target.grid_map, axis) for axis in (0, 1))
        assert labels.shape == valid.shape == (height, width)  # what the C code trusts
        assert valid.dtype == torch.bool
        assert labels.numpy().min() >= 0  # torch would use threads of its own
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
        self._run(logits[:, None], [target], winners, None, None)
        return winners

    def counts(
        self, logits: Float[Tensor, "l b t k"], targets: Sequence[Target], confusion: Int64[Tensor, "l k k"] | None
    ) -> Int64[Tensor, "l b k 3"]:
        """As `plain.upsampled_counts`."""
        counts = torch.zeros(*logits.shape[:2], logits.shape[3], 3, dtype=torch.int64)
        self._run(logits, targets, None, counts, confusion)
        return counts

    def _run(
        self,
        logits: Float[Tensor, "l b t k"],
        targets: Sequence[Target],
        winners: Int16[Tensor, "l H W"] | None,
        counts: Int64[Tensor, "l b k 3"] | None,
        confusion: Int64[Tensor, "l k k"] | None,
    ) -> None:
        """Every probe's results on an image are its own, but for `confusion`, to which the kernel adds atomically."""
        logits = logits.detach().float().contiguous()
        classes = logits.shape[3]  # what the C code trusts
        assert classes <= torch.iinfo(torch.int16).max
        if confusion is not None:
            assert confusion.shape == (len(logits), classes, classes)
            assert confusion.dtype == torch.int64
            assert confusion.is_contiguous()

        def work(probe: int, image: int) -> int:
            outs = (
                None if winners is None else winners[probe],
                None if counts is None else counts[probe, image],
                None if confusion is None else confusion[probe],
            )
            return self._evaluated(logits[probe, image], targets[image], outs)

        results = _each_pair(logits, targets, work)
        if -2 in results:
            raise MemoryError("no memory for the evaluation kernel")
        if 1 in results:
            raise unbounded(logits, results.index(1) // len(targets))

    def _evaluated(self, logits: Float32[Tensor, "t k"], target: Target, outs: tuple[Tensor | None, ...]) -> int:
        labels, valid = target.labels.short().contiguous(), target.valid.contiguous()
        (h, w), (height, width) = target.grid_map.grid, target.grid_map.image
        rows, columns = (tables.axis(target.grid_map, axis) for axis in (0, 1))
        first = (rows.seen, columns.seen) if outs[0] is None else (rows.whole, columns.whole)
        tokens, classes = logits.shape  # what the C code trusts
        assert tokens == h * w
        assert labels.shape == valid.shape == (height, width)
        assert valid.dtype == torch.bool
        return self._evaluate(
            *(logits.data_ptr(), h, w, classes, LIMIT),
            *(first[0].ctypes.data, rows.way32.ctypes.data, first[1].ctypes.data, columns.way32.ctypes.data),
            *(height, width, labels.data_ptr(), valid.data_ptr()),
            *(None if out is None else out.data_ptr() for out in outs),
        )


def _each_pair(
    logits: Float32[Tensor, "l b t k"], targets: Sequence[Target], work: Callable[[int, int], int]
) -> list[int]:
    """What the work returns for every probe on every image."""
    probes, images = logits.shape[:2]
    assert len(targets) == images
    return _each(probes * images, lambda at: work(*divmod(at, images)))


def _each(number: int, work: Callable[[int], Any]) -> list[Any]:
    """What the work returns for 0, 1 and so on; the threads that torch may use share it."""
    threads = torch.get_num_threads()
    if min(threads, number) <= 1:
        return [work(at) for at in range(number)]
    return list(_pool(os.getpid(), threads).map(work, range(number)))  # ctypes lets go of the interpreter's lock


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Started once in a process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(threads, f"segbench-{process}")


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
