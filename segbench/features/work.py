"""What a cell's probes read: a model, two splits, some sites, and the processes that share them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segbench.adapters.base import Adapter
from segbench.features.estimate import Load
from segbench.features.memory import MicroBatch
from segbench.features.source import Streamed
from segbench.team import Team
from segbench.types import Dataset, Site


@dataclass(frozen=True)
class Work:
    """What the probes of a cell read."""

    adapter: Adapter
    train: Dataset
    val: Dataset
    sites: tuple[Site, ...]
    micro_batch: MicroBatch
    reads: int  # of an image's features, over all epochs
    folder: Path  # where files may lie
    team: Team = field(default_factory=Team)

    @property
    def load(self) -> Load:
        """What one process of the team reads, at most."""
        images = max(len(a) + len(b) for a, b in zip(*map(self.team.parts, self._lengths), strict=True))
        return Load(self.sites, images, -(-self.reads // self.team.size))

    @property
    def own(self) -> int:
        """Images of both splits that this process reads once."""
        return sum(len(self.team.part(length)) for length in self._lengths)

    @property
    def _lengths(self) -> tuple[int, int]:
        return len(self.train), len(self.val)

    def streamed(self, sites: Sequence[Site]) -> tuple[Streamed, Streamed]:
        """Both splits, by forward passes."""
        train, val = (Streamed(self.adapter, one, sites, self.micro_batch, self.team) for one in (self.train, self.val))
        return train, val
