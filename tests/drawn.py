"""What tests of adapters share: drawn samples, states at the patches, a checkpoint's JSON with other keys."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segbench.adapters.base import Batch
from segbench.types import GridMap, Sample


def samples(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Sample]:
    """Pictures of noise of these sizes (H x W), without labels."""
    draw = np.random.default_rng(seed)
    images = [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [Sample("drawn", Image.fromarray(image), np.zeros(image.shape[:2], np.uint8)) for image in images]


def at_patches(states: Tensor, batch: Batch) -> Tensor:
    """[b, t, d] of states [b, s, d]."""
    return states[torch.arange(len(states))[:, None], batch.image_at]


def rewrite(folder: Path, name: str, **keys: Any) -> None:
    """Give a JSON file other values for some keys."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | keys))


def distances(found: Float[np.ndarray, "t 2"], grid_map: GridMap, pixels: float) -> tuple[float, float]:
    """How far patches lie from where a grid map puts them, in original pixels: at most, and on average along an axis.

    `found` are the original row and column that each patch shows, `pixels` the model pixels along its edge. Patches
    near the end of a ramp are left out: resizing bends it there.
    """
    image = np.array(grid_map.image)
    centre = np.stack(np.unravel_index(np.arange(len(found)), grid_map.grid), -1) + 0.5
    told = (centre - grid_map.shift) / grid_map.scale - 0.5
    margin = 1 + 3 * np.maximum(1, 1 / (np.array(grid_map.scale) * pixels))
    inside = ((told > margin) & (told < image - 1 - margin)).all(1)
    assert inside.sum() >= 4, "nothing of the image is left to compare"
    away = (found - told)[inside]
    return float(np.abs(away).max()), float(np.abs(away.mean(0)).max())
