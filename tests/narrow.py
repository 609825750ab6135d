"""A real adapter on a machine with room for a few images only."""

import torch

from segbench.adapters.base import Adapter


class Narrow(Adapter):
    """Another adapter, of which only so many images fit into a pass of the LLM, and of the vision side."""

    def __init__(self, adapter: Adapter, fit: int, vision: int = 1 << 10) -> None:
        self.__dict__ |= vars(adapter)
        self.fit, self.vision = fit, vision
        self.passed = []  # images of every pass of the LLM that succeeded

    def encode(self, batch):
        _refuse(len(batch.grids), self.vision)
        return super().encode(batch)

    def replay(self, encoded, wanted, show):
        super().replay(encoded, wanted, show)  # memory runs out behind the work, so that what it left shows
        _refuse(len(encoded.image), self.fit)
        self.passed.append(len(encoded.image))


def _refuse(images, fit):
    if images > fit:
        torch.empty(1 << 55)
