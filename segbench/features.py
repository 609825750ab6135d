"""The stream of features: what the probes of all sites read, image by image, from one forward pass.

Two policies give the same numbers: `stream` runs the model again in every epoch and keeps nothing, `memory` reads every
image once and holds its features. `auto` holds them when they need at most a quarter of the memory at hand.
"""

import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from segbench import geometry
from segbench.adapters.base import Adapter, Features
from segbench.errors import DataError
from segbench.kernels import Target
from segbench.types import IGNORE, Dataset, GridMap, Sample, Site

Policy = Literal["auto", "stream", "memory"]
Indices = Sequence[int] | Int[np.ndarray, " n"]
Progress = Callable[[int], None]  # called with the number of images that were just worked on

_log = logging.getLogger(__name__)


class FeatureSource(ABC):
    """Features and targets of one split, by image index."""

    dataset: Dataset
    sites: tuple[Site, ...]
    batch_size: int  # images per forward pass and per micro-batch; no number depends on it

    @abstractmethod
    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        """The images in this order, in micro-batches of b >= 1 images; features are [b, t, d] per site."""

    @abstractmethod
    def target(self, index: int) -> Target:
        """The ground truth of one image, without its features."""


class Streamed(FeatureSource):
    """Every read is a forward pass; nothing is kept.

    `at_model` gives the ground truth at the resolution of what the model sees, in place of its own.
    """

    def __init__(
        self, adapter: Adapter, dataset: Dataset, sites: Sequence[Site], batch_size: int, at_model: bool = False
    ) -> None:
        self.adapter, self.dataset, self.sites, self.batch_size = adapter, dataset, tuple(sites), batch_size
        self.at_model = at_model

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        for start in range(0, len(indices), self.batch_size):
            samples = [checked(self.dataset, int(index)) for index in indices[start : start + self.batch_size]]
            for batch in self.adapter.batches(samples):  # one, unless the model gives images grids of their own
                features = self.adapter.read(batch, self.sites)
                yield features, list(map(self._target, batch.grids, batch.masks))

    def target(self, index: int) -> Target:
        sample = checked(self.dataset, index)
        return self._target(self.adapter.grid_map((sample.image.height, sample.image.width)), sample.mask)

    def _target(self, grid_map: GridMap, mask: UInt8[np.ndarray, "H W"]) -> Target:
        if self.at_model:
            mask, grid_map = geometry.at_model(mask, grid_map, self.adapter.patch_pixels)
        return Target.of(grid_map, mask, self.adapter.device)


class Held(FeatureSource):
    """Every image is read once and its features stay in memory."""

    def __init__(self, streamed: Streamed, progress: Progress) -> None:
        self.dataset, self.sites, self.batch_size = streamed.dataset, streamed.sites, streamed.batch_size
        self._features: list[dict[Site, Float[Tensor, "t d"]]] = []
        self._targets: list[Target] = []
        for features, targets in streamed.read(range(len(self.dataset))):
            for row, target in enumerate(targets):
                self._features.append({site: features[site][row] for site in self.sites})
                self._targets.append(target)
            progress(len(targets))

    def read(self, indices: Indices) -> Iterator[tuple[Features, list[Target]]]:
        for start in range(0, len(indices), self.batch_size):
            chosen = [int(index) for index in indices[start : start + self.batch_size]]
            for _, alike in itertools.groupby(chosen, lambda i: self._targets[i].grid_map.grid):
                some = list(alike)
                stacked = {site: torch.stack([self._features[i][site] for i in some]) for site in self.sites}
                yield stacked, [self._targets[i] for i in some]

    def target(self, index: int) -> Target:
        return self._targets[index]


def source(
    adapter: Adapter,
    dataset: Dataset,
    sites: Sequence[Site],
    batch_size: int,
    policy: Policy,
    progress: Progress,
) -> FeatureSource:
    """The features of a split under a policy; `progress` hears of the reading that `memory` does at once."""
    streamed = Streamed(adapter, dataset, sites, batch_size)
    if policy == "auto":
        needed, there = _held_bytes(streamed), _memory_at_hand(adapter.device)
        policy = "stream" if needed > there / 4 else "memory"
        _log.info("features: %s, %.2f GB for %d images, %.2f GB free", policy, needed / 1e9, len(dataset), there / 1e9)
    return streamed if policy == "stream" else Held(streamed, progress)


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


def _held_bytes(streamed: Streamed) -> int:
    """Bytes that `memory` would need, from one image."""
    features, targets = next(streamed.read([0]))
    labels = sum(tensor.numel() * tensor.element_size() for tensor in (targets[0].labels, targets[0].valid))
    return len(streamed.dataset) * (labels + sum(x.numel() * x.element_size() for x in features.values()))


def _memory_at_hand(device: torch.device) -> int:
    """Free bytes where the features lie: beside the model."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
