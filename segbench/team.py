"""The processes that measure one cell together. Alone, as here, there is one; `distributed.Group` is several."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

if TYPE_CHECKING:
    from torch import Tensor


class Team:
    """What they have to tell each other. Every process calls the same methods in the same order."""

    rank = 0  # the first one writes, publishes and speaks
    size = 1
    here = 1  # how many share this machine's memory

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """Which of so many things this process does; contiguous, and as many as the others do, give or take one."""
        return self.parts(count)[self.rank]

    def parts(self, count: int) -> list[range]:
        """Which of so many things each process does."""
        edges = [count * rank // self.size for rank in range(self.size + 1)]
        return [range(edges[rank], edges[rank + 1]) for rank in range(self.size)]

    def sum(self, tensors: "Sequence[Tensor]") -> None:
        """Put the sum over all processes in place of every tensor, in one transfer; all of one type and device."""

    def exchange(self, message: bytes) -> list[bytes]:
        """The messages of all processes, in their order."""
        return [message]

    def gather(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The arrays of all processes, in their order; shapes may differ."""
        own = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return [safetensors.numpy.load(one) for one in self.exchange(safetensors.numpy.save(own))]

    def agree(self, value: Any) -> Any:
        """What the first process says: anything that JSON holds. The others' values are not looked at."""
        told = self.exchange(json.dumps(value).encode() if self.first else b"")
        return json.loads(told[0])

    def meet(self) -> None:
        """Wait until every process is here."""
        self.exchange(b"")

    def fail(self, reason: str) -> None:
        """End what all are doing: in the others, the call that they wait in raises CellError with the reason."""
