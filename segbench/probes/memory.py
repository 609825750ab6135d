"""Images that do not fit into memory at once are read fewer at a time; no number depends on it but for rounding."""

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from segbench.adapters.base import Features
from segbench.errors import CellError
from segbench.features import FeatureSource, Indices
from segbench.kernels import Target

Batch = tuple[Features, list[Target]]
T = TypeVar("T")

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # on a CPU, torch has no type of error for it

_log = logging.getLogger(__name__)


@dataclass
class MicroBatch:
    """How many images are read at once: half as many from each time on that memory does not suffice.

    CellError where it does not suffice for one.
    """

    images: int

    def whole(self, source: FeatureSource, indices: Indices, work: Callable[[Iterator[Batch]], T]) -> T:
        """What the work makes of all the images in order; when begun anew, it has to forget what it did before."""
        while True:
            try:
                return work(self._read(source, indices))
            except (MemoryError, RuntimeError) as error:
                if not _is_lack(error):
                    raise
                self._refuse_one(len(indices), error)
            self._halve(
                len(indices)
            )  # out here nothing holds the error, nor the tensors of frames that it came through

    def each(self, source: FeatureSource, indices: Indices, work: Callable[[Batch], T]) -> Iterator[T]:
        """What the work makes of each micro-batch in order; of one that failed for memory, in smaller ones."""
        done = 0
        while done < len(indices):
            left = indices[done:]
            try:
                for batch in self._read(source, left):
                    made, images = work(batch), len(batch[1])
                    del batch
                    done += images
                    yield made
            except (MemoryError, RuntimeError) as error:
                if not _is_lack(error):
                    raise
                self._refuse_one(len(left), error)
            else:
                return
            self._halve(len(left))

    def _read(self, source: FeatureSource, indices: Indices) -> Iterator[Batch]:
        for start in range(0, len(indices), self.images):
            yield from source.read(indices[start : start + self.images])

    def _refuse_one(self, images: int, error: MemoryError | RuntimeError) -> None:
        if min(self.images, images) == 1:
            raise CellError(
                "memory does not suffice for the probes of one image; free some, name fewer `sites`, "
                "choose another `features` policy or a device with more of it "
                f"({str(error).partition(chr(10))[0] or 'MemoryError'})"
            ) from error

    def _halve(self, images: int) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.images = min(self.images, images) // 2
        _log.warning("out of memory: %d image(s) at once from here on; no number changes but by rounding", self.images)


def _is_lack(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)
