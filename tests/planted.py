"""Features that are made by hand, so that what a probe must find in them is known."""

import numpy as np
import torch

from segbench import probes
from segbench.features import FeatureSource, MicroBatch
from segbench.kernels import Target
from segbench.types import IGNORE, GridMap, Site

SITES = (Site("encoder"), Site("llm", 1))
GRID, CLASSES = (3, 4), 3
SCHEDULE = probes.Schedule(epochs=4, batch=5, lr=0.05, betas=(0.9, 0.999), weight_decay=0.0, power=0.9, seed=0)
LACKS = (  # of memory: by torch on a CPU, by python, by torch on a GPU
    None,
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)


class Planted(FeatureSource):
    """Features that hold the class of their patch at the encoder, and noise at llm.1."""

    def __init__(self, images: int = 12, batch_size: int = 3, seed: int = 0, scale: float = 1.0) -> None:
        random = np.random.default_rng(seed)
        self.sites, self.micro_batch = SITES, MicroBatch(batch_size)
        labels = random.integers(0, CLASSES, (images, 12))
        one_hot = np.eye(5)[labels]
        self._features = {
            SITES[0]: torch.from_numpy(one_hot * scale + random.normal(0, 0.1, one_hot.shape)).float(),
            SITES[1]: torch.from_numpy(random.normal(0, 1, (images, 12, 6))).float(),
        }
        masks = labels.reshape(images, *GRID).repeat(4, 1).repeat(4, 2).astype(np.uint8)
        masks[:, 0] = IGNORE
        self._targets = [Target.of(GridMap.squash(GRID, (12, 16)), mask) for mask in masks]

    def read(self, indices):
        for chosen in self.micro_batch.parts([*map(int, indices)]):
            yield {site: x[chosen] for site, x in self._features.items()}, [self._targets[i] for i in chosen]

    def target(self, index):
        return self._targets[index]


class Narrow(Planted):
    """Planted features of which only a few images fit into memory at once."""

    def __init__(self, fit: int, lack: BaseException | None, **options) -> None:
        super().__init__(**options)
        self.fit, self.lack, self.tried = fit, lack, []

    def read(self, indices):
        for features, targets in super().read(indices):
            self.tried.append(len(targets))
            if len(targets) > self.fit:
                if self.lack is None:
                    torch.empty(1 << 55)
                raise self.lack
            yield features, targets


def bank(seed=0, **options):
    return probes.ProbeBank({SITES[0]: 5, SITES[1]: 6}, CLASSES, seed=seed, **options)


def train(source, schedule=SCHEDULE, made=None):
    trainer = probes.Trainer(made or bank(), source, range(12), schedule)
    for epoch in range(schedule.epochs):
        trainer.epoch(epoch, lambda images: None)
    return trainer


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
