"""A real adapter on a machine with room for a few images only."""

import torch

from segbench.adapters.base import Adapter


class Narrow(Adapter):
    """Another adapter, of which only so many images fit into a pass of the vision side or of the LLM."""

    def __init__(self, adapter: Adapter, fit: int) -> None:
        self.__dict__ |= vars(adapter)
        self.fit = fit
        self.passed = []  # images of every pass that succeeded: on the vision side, or of the LLM

    def encode(self, batch):
        self._refuse(len(batch.grids))
        return super().encode(batch)

    def replay(self, encoded, wanted, show):
        super().replay(encoded, wanted, show)  # memory runs out behind the work, so that what it left shows
        self._refuse(len(encoded.image))

    def _refuse(self, images):
        if images > self.fit:
            torch.empty(1 << 55)
        self.passed.append(images)
