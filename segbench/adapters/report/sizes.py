"""What the features of a model weigh, site by site, and what that asks of the memory."""

import itertools
from collections.abc import Mapping

from segbench.adapters.base import FINAL, Adapter, Batch
from segbench.adapters.report.findings import Memory, Row
from segbench.types import Site

BATCHES = (1, 8)  # images
HELD = 1000  # images


def sites(adapter: Adapter, batch: Batch, widths: Mapping[Site, int]) -> tuple[Row, ...]:
    """Residual sites, then keys and values; neighbours as wide as each other are one row."""
    patches, size = batch.image_at.shape[1], adapter.model.dtype.itemsize
    streams = ("key", "value")
    order = [*adapter.sites(), *(site for one in streams for site in adapter.known_sites() if site.stream == one)]
    found = []
    for (*_, width), some in itertools.groupby(order, lambda one: (one.stage, one.stream, one == FINAL, widths[one])):
        alike = [str(site) for site in some]
        found.append(Row(alike[0], alike[-1], len(alike), width, patches * width * size))
    return tuple(found)


def memory(adapter: Adapter, batch: Batch, widths: Mapping[Site, int]) -> Memory:
    """Bytes of the weights, and of batches and images like this one."""
    size, patches = adapter.model.dtype.itemsize, batch.image_at.shape[1]
    features = patches * size * sum(widths[site] for site in adapter.sites())
    states = batch.inputs["input_ids"].shape[1] * size * widths[Site("llm", adapter.depth)]
    return Memory(
        weights=sum(one.numel() * one.element_size() for one in adapter.model.parameters()),
        batches={str(images): images * (features + 2 * states) for images in BATCHES},
        held=HELD * features,
        held_images=HELD,
    )
