"""What the probes of a tiny cell read, and how it must be."""

import torch

from segbench import features
from segbench.data import scenes
from segbench.features.estimate import Costs
from segbench.types import Site

SITES = (Site("encoder"), Site("llm", 2))
COSTS = Costs({SITES[0]: 100, SITES[1]: 300}, 320, 50, forward=1.0, encode=0.25, write=1e3, read=1e3)


def work(adapter, dataset, folder, reads=100, sites=SITES, batch_size=2):
    val = scenes.load(scenes.Params(train=1, val=3, size=(48, 60)), "val")
    return features.Work(adapter, dataset, val, sites, features.MicroBatch(batch_size), reads, folder)


def read_all(plan, dataset, adapter):
    """Reads every stage, in another order than the images have, and compares with a forward pass."""
    seen, order = [], [4, 0, 3, 3]
    for stage in plan.stages((), lambda images: None):
        expected = next(features.Streamed(adapter, dataset, stage.sites, features.MicroBatch(4)).read(order))[0]
        parts = [found for found, _ in stage.train.read(order)]
        for site in stage.sites:
            found = torch.cat([part[site] for part in parts])
            torch.testing.assert_close(found, expected[site], rtol=1e-4, atol=1e-4)
        assert [target.grid_map.image for _, targets in stage.val.read([0, 2]) for target in targets] == [(48, 60)] * 2
        seen += stage.sites
    return tuple(seen)
