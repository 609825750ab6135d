"""The stream of features: what the probes of some sites read, image by image."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segbench import geometry
from segbench.adapters.base import Adapter, Features
from segbench.errors import DataError
from segbench.features.memory import MicroBatch
from segbench.kernels import Target
from segbench.team import Team
from segbench.types import IGNORE, Dataset, GridMap, Sample, Site

Indices = Sequence[int] | Int[np.ndarray, " n"]
Row = Callable[[int], Float[Tensor, "t d"]]  # the features of one image, by its index


class FeatureSource(ABC):
    """Features and targets of one split, by image index."""

    dataset: Dataset
    sites: tuple[Site, ...]
    micro_batch: MicroBatch  # images per forward pass and per step of the probes; one for a whole cell
    team: Team = Team()  # who reads together

    @abstractmethod
    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        """The images in this order, in micro-batches of b >= 1 images; features are [b, t, d] per site."""

    @abstractmethod
    def target(self, index: int) -> Target:
        """The ground truth of one image, without its features."""

    def shares(self, indices: Indices) -> list[list[int]]:
        """For every process of the team, which of these images it reads: positions in `indices`, ascending."""
        return [list(part) for part in self.team.parts(len(indices))]

    def own(self, indices: Indices) -> list[int]:
        """Those of the images that this process reads."""
        return [int(indices[place]) for place in self.shares(indices)[self.team.rank]]


class Streamed(FeatureSource):
    """Every read is a forward pass; nothing is kept."""

    def __init__(
        self,
        adapter: Adapter,
        dataset: Dataset,
        sites: Sequence[Site],
        micro_batch: MicroBatch,
        team: Team | None = None,
    ) -> None:
        self.adapter, self.dataset, self.sites, self.micro_batch = adapter, dataset, tuple(sites), micro_batch
        self.team = team or Team()

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        for part in self.micro_batch.parts([*map(int, indices)]):
            samples = [checked(self.dataset, index) for index in part]
            for batch in self.adapter.batches(samples):  # one, unless the model gives images grids of their own
                targets = [*map(self.ground_truth, batch.grids, batch.masks)]
                yield self.adapter.read(batch, self.sites), targets  # nothing here holds features beside the next ones

    def target(self, index: int) -> Target:
        sample = checked(self.dataset, index)
        return self.ground_truth(self.adapter.grid_map((sample.image.height, sample.image.width)), sample.mask)

    def ground_truth(self, grid_map: GridMap, mask: UInt8[np.ndarray, "H W"]) -> Target:
        """The mask as a target beside the model."""
        return Target.of(grid_map, mask, self.adapter.device)


class Held(FeatureSource):
    """Features and targets of the images that are this process's lie somewhere; the model does not run.

    Rows and targets are those of `team.part` of the images, in their order.
    """

    def __init__(self, streamed: Streamed, rows: Mapping[Site, Row], targets: Sequence[Target]) -> None:
        self.dataset, self.micro_batch, self.team = streamed.dataset, streamed.micro_batch, streamed.team
        self.sites, self._rows, self._targets = tuple(rows), rows, targets
        self._streamed, self._part = streamed, self.team.part(len(self.dataset))

    def shares(self, indices: Indices) -> list[list[int]]:
        parts = self.team.parts(len(self.dataset))
        return [[place for place, index in enumerate(indices) if index in part] for part in parts]

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        for part in self.micro_batch.parts([*map(int, indices)]):
            chosen = [self._part.index(index) for index in part]
            for _, alike in itertools.groupby(chosen, lambda i: self._targets[i].grid_map.grid):
                some = list(alike)
                stacked = {site: torch.stack([row(i) for i in some]) for site, row in self._rows.items()}
                there = {site: features.to(self._streamed.adapter.device) for site, features in stacked.items()}
                yield there, [self._targets[i] for i in some]

    def target(self, index: int) -> Target:
        if index in self._part:
            return self._targets[self._part.index(index)]
        return self._streamed.target(index)


class AtModel(FeatureSource):
    """The same features with the ground truth at the resolution of what the model sees, in place of its own."""

    def __init__(self, source: FeatureSource, adapter: Adapter) -> None:
        self.source, self.adapter, self.dataset = source, adapter, source.dataset
        self.sites, self.micro_batch, self.team = source.sites, source.micro_batch, source.team

    def shares(self, indices: Indices) -> list[list[int]]:
        return self.source.shares(indices)

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        wanted = iter(indices)
        for features, own in self.source.read(indices):
            yield features, [self.target(int(next(wanted))) for _ in own]

    def target(self, index: int) -> Target:
        sample = checked(self.dataset, index)
        grid_map = self.adapter.grid_map((sample.image.height, sample.image.width))
        mask, grid_map = geometry.at_model(sample.mask, grid_map, self.adapter.patch_pixels)
        return Target.of(grid_map, mask, self.adapter.device)


def checked(dataset: Dataset, index: int) -> Sample:
    """A sample whose mask fits its image and the classes; DataError, naming it, for one that a data set got wrong."""
    sample = dataset[index]
    mask, size = sample.mask, (sample.image.height, sample.image.width)
    if mask.dtype != np.uint8 or mask.shape != size:
        raise DataError(f"{sample.name}: the mask is {mask.dtype} {mask.shape}; expected uint8 {size}, as the image")
    wrong = mask[(mask >= len(dataset.classes)) & (mask != IGNORE)]
    if wrong.size:
        raise DataError(f"{sample.name}: the mask holds {wrong[0]}; expected 0..{len(dataset.classes) - 1} or {IGNORE}")
    return sample
