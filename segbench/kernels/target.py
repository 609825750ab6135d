"""What the loss and the counts of one image need beside the logits."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor

from segbench.geometry import seen_mask, upsampling
from segbench.types import IGNORE, GridMap


@dataclass(frozen=True)
class Target:
    """The ground truth of one image at original resolution, and the up-sampling of its grid."""

    rows: Float[Tensor, "H h"]  # bilinear weights of every pixel row over the grid rows
    columns: Float[Tensor, "W w"]
    grid_map: GridMap
    labels: Int16[Tensor, "H W"]  # class ids, 0 where not valid
    valid: Bool[Tensor, "H W"]  # labelled and seen by the model
    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    # ^ what a making derives from these once, for all probes and epochs

    @classmethod
    def of(cls, grid_map: GridMap, mask: UInt8[np.ndarray, "H W"], device: torch.device | str = "cpu") -> "Target":
        """The ground truth as it is, and the up-sampling of its grid; ignored and unseen pixels are not valid."""
        valid = (mask != IGNORE) & seen_mask(grid_map)
        labels = torch.from_numpy(mask.astype(np.int16) * valid).to(device)
        rows, columns = (_weights(grid_map, axis).to(device) for axis in (0, 1))
        return cls(rows, columns, grid_map, labels, torch.from_numpy(valid).to(device))

    @cached_property
    def pixels(self) -> int:
        """Number of valid pixels."""
        return int(self.valid.sum())

    @cached_property
    def classes(self) -> int:
        """One more than the largest class id."""
        return int(self.labels.max()) + 1


@lru_cache(maxsize=1024)  # most data sets have a few image sizes
def _weights(grid_map: GridMap, axis: Literal[0, 1]) -> Float[Tensor, "n g"]:
    return torch.from_numpy(upsampling(grid_map, axis)).float()
