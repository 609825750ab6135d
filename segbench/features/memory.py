"""Images that do not fit into memory at once are taken fewer at a time; no number depends on it but for rounding.

Every process of a team does so for itself: what is tried again here must hold no call that the others take part in.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from segbench.errors import CellError
from segbench.team import Team

S = TypeVar("S")
T = TypeVar("T")

LACKS = (  # of memory, where torch has no type of error for it
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # behind CUBLAS, CUDNN, ...
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, of work that it did when the model was loaded
    "could not create a memory object",
)

_log = logging.getLogger(__name__)


class TooLarge(CellError):
    """Memory does not suffice for one image beside what it holds already."""


@dataclass
class MicroBatch:
    """How many images a cell takes at once: half as many from each time on that memory does not suffice.

    TooLarge where it does not suffice for one.
    """

    images: int

    def each(self, things: Sequence[S], work: Callable[[Sequence[S]], T]) -> Iterator[T]:
        """What the work makes of each part of the things, in order; of a part that failed for memory, of its parts.

        The work leaves nothing behind when it fails. It may itself go through a part in smaller ones: where not even
        one fits, there may be room for it beside a part of half the length.
        """
        done = 0
        while done < len(things):
            part = things[done : done + self.images]
            try:
                yield work(part)
            except (MemoryError, RuntimeError, TooLarge) as error:
                _refuse(error, len(part))
            else:
                done += len(part)
                continue
            self._halve(len(part))  # out here nothing holds the error, nor the tensors of frames that it came through

    def whole(self, things: Sequence[S], work: Callable[[Iterator[Sequence[S]]], T]) -> T:
        """What the work makes of all parts in order; when begun anew, it has to forget what it did before."""
        while True:
            try:
                return work(self.parts(things))
            except (MemoryError, RuntimeError) as error:
                _refuse(error, min(self.images, len(things)))
            self._halve(len(things))

    def parts(self, things: Sequence[S]) -> Iterator[Sequence[S]]:
        """All of the things in order, as many at once as fit."""
        step = self.images  # may be halved meanwhile
        for start in range(0, len(things), step):
            yield things[start : start + step]

    def smallest(self, team: Team) -> int:
        """Of all processes of the team; each of them asks."""
        return min(map(int, team.exchange(str(self.images).encode())))

    def _halve(self, images: int) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.images = max(1, min(self.images, images) // 2)
        _log.warning("out of memory: %d image(s) at once from here on; no number changes but by rounding", self.images)


def _refuse(error: MemoryError | RuntimeError | TooLarge, images: int) -> None:
    """Raise what is no lack of memory, and TooLarge where there is nothing to halve."""
    if isinstance(error, TooLarge):
        if images <= 1:
            raise error
    elif not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(one in str(error) for one in LACKS):
        raise error
    elif images <= 1:
        raise TooLarge(
            "memory does not suffice for one image; free some, name fewer `sites` or another `features` policy in the "
            "probe task, or take a device with more of it "
            f"({str(error).partition(chr(10))[0] or type(error).__name__})"
        ) from error
