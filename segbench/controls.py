"""What a probe reads without reading the image: the levels that a curve must be above to mean anything.

`Shuffled` gives every image the labels of another one, so that features tell nothing but what all images share.
`Position` gives no features but the place of each patch, so that its probe is the best map of classes by place alone.
"""

from collections.abc import Iterator

import numpy as np
import torch

from segbench.adapters.base import Features
from segbench.errors import CellError
from segbench.features import FeatureSource, Indices
from segbench.kernels import Target
from segbench.types import Site

PLACE = Site("encoder")  # under which a bank knows the probe of positions; it belongs to no place in the model


class Shuffled(FeatureSource):
    """Features of one image with the ground truth of another, every image used once as either.

    The other's ground truth keeps its own grid map: patches meet patches, and no mask is resized.
    """

    def __init__(self, source: FeatureSource, seed: int) -> None:
        self.source, self.dataset = source, source.dataset
        self.sites, self.micro_batch, self.team = source.sites, source.micro_batch, source.team
        count = len(source.dataset)
        if count < 2:
            raise CellError("shuffled: one training image has no other to take labels from")
        order = np.random.default_rng([seed, count]).permutation(count)
        self.partner = np.empty(count, np.int64)
        self.partner[order] = np.roll(order, 1)  # one cycle through all: no image keeps its own labels

    def shares(self, indices: Indices) -> list[list[int]]:
        return self.source.shares(self._partners(indices))

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        wanted = iter(indices)
        for features, own in self.source.read(self._partners(indices)):
            targets = [self.source.target(int(next(wanted))) for _ in own]
            for one, other in zip(own, targets, strict=True):
                if one.grid_map.grid != other.grid_map.grid:
                    raise CellError(
                        "shuffled: the images of this model have grids of their own each; use `preprocess: squash`"
                    )
            yield features, targets

    def target(self, index: int) -> Target:
        return self.source.target(index)

    def _partners(self, indices: Indices) -> list[int]:
        """The images whose features stand in for those of these."""
        return [int(self.partner[int(index)]) for index in indices]


class Position(FeatureSource):
    """One feature per place on the grid, 1 where the patch is and 0 elsewhere; the images are not looked at."""

    def __init__(self, source: FeatureSource, grid: tuple[int, int], device: torch.device) -> None:
        self.source, self.dataset, self.micro_batch = source, source.dataset, source.micro_batch
        self.sites, self.team = (PLACE,), source.team
        self._places = torch.eye(grid[0] * grid[1], device=device)

    def shares(self, indices: Indices) -> list[list[int]]:
        return self.source.shares(indices)  # its targets are at hand where its features are

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        for part in self.micro_batch.parts([*map(int, indices)]):
            targets = [self.target(index) for index in part]
            yield {PLACE: self._places.expand(len(targets), -1, -1)}, targets

    def target(self, index: int) -> Target:
        return self.source.target(index)
