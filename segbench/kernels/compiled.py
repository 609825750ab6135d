"""The kernels that build.py compiles: up-sampled argmax and counts on a CPU, exact up to near ties."""

import ctypes
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, Int32, Int64
from torch import Tensor

from segbench.geometry import between
from segbench.kernels import build
from segbench.kernels.plain import LIMIT, unbounded
from segbench.kernels.target import Target
from segbench.types import GridMap

PADDING = 64  # floats that a kernel may read behind the last column: the widest target's block

_log = logging.getLogger(__name__)


class NotCompiled(Exception):
    """There are no compiled kernels that this machine can run; the message says why."""


@dataclass(frozen=True)
class Making:
    """Which kernels evaluate on this machine, and in words that a reader of a log understands."""

    says: str
    kernels: "Kernels | None"  # None: plain PyTorch


class Kernels:
    """The functions of a compiled library for one target; safe to call from several threads at once."""

    def __init__(self, library: ctypes.CDLL, target: str) -> None:
        self.target = target
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        self._evaluate = library[f"segbench_evaluate_{target}"]
        self._evaluate.restype = integer
        self._evaluate.argtypes = [pointer, *[integer] * 4, ctypes.c_float, *[pointer] * 4, *[integer] * 2]
        self._evaluate.argtypes += [pointer] * 5

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
        plan, (h, w), (height, width) = _plan(target.grid_map), target.grid_map.grid, target.grid_map.image
        first = plan.seen if winners is None else plan.whole
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
                *(first[0].ctypes.data, plan.share[0].ctypes.data, first[1].ctypes.data, plan.share[1].ctypes.data),
                *(height, width, labels.data_ptr(), valid.data_ptr()),
                *(None if out is None else out[part].data_ptr() for out in (winners, counts, confusion)),
            )

        threads = max(1, min(torch.get_num_threads(), probes))
        edges = [probes * part // threads for part in range(threads + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(edges)]
        if threads == 1:
            results = [evaluate(part) for part in parts]
        else:
            with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
                results = list(pool.map(evaluate, parts))
        for part, result in zip(parts, results, strict=True):
            if result == -2:
                raise MemoryError("no memory for the evaluation kernel")
            if result >= 0:
                raise unbounded(logits, part.start + result)


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
    """What evaluates on a CPU here; decided, and told to the log, once."""
    try:
        kernels = load(build.LIBRARY)
        made = Making(f"compiled C, {kernels.target}", kernels)
    except NotCompiled as reason:
        made = Making(f"plain PyTorch ({reason}; with a C compiler: python -m segbench.kernels)", None)
    _log.info("evaluation on a CPU: %s", made.says)
    return made


class _Plan(NamedTuple):
    """Per axis, rows and columns: the first pixel of every cell (and the end), and where in its cell a pixel lies."""

    whole: tuple[Int32[np.ndarray, " g"], Int32[np.ndarray, " g"]]
    seen: tuple[Int32[np.ndarray, " g"], Int32[np.ndarray, " g"]]  # without the pixels that no model saw
    share: tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]


@lru_cache(maxsize=1024)  # most data sets have a few image sizes
def _plan(grid_map: GridMap) -> _Plan:
    (rows, row_seen, row_share), (columns, column_seen, column_share) = (_axis(grid_map, axis) for axis in (0, 1))
    return _Plan((rows, columns), (row_seen, column_seen), (row_share, column_share))


def _axis(
    grid_map: GridMap, axis: Literal[0, 1]
) -> tuple[Int32[np.ndarray, " g"], Int32[np.ndarray, " g"], Float32[np.ndarray, " n"]]:
    low, share = between(grid_map, axis)
    cells = max(grid_map.grid[axis] - 1, 1)
    first = np.searchsorted(low, np.arange(cells + 1)).astype(np.int32)
    seen = first.clip(grid_map.seen[axis], grid_map.seen[axis + 2])
    return first, seen, np.pad(share, (0, PADDING)).astype(np.float32)
