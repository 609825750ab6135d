"""Scenes for the kernels: grids over images of any size, ground truths, logits, and their up-sampling in float64."""

import numpy as np
import torch
from hypothesis import strategies as st

from segbench import geometry
from segbench.geometry import upsampling
from segbench.types import IGNORE, GridMap

LENGTH = st.integers(1, 40)  # pixels; grids have up to six rows, so that images smaller than their grid are drawn


@st.composite
def grid_maps(draw):
    image = draw(st.tuples(LENGTH, LENGTH))
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    kind = draw(st.sampled_from(["squash", "pad", "crop", "any"]))
    if kind == "squash":
        return GridMap.squash(grid, image)
    if kind == "pad":
        return geometry.pad(grid, image)
    if kind == "crop":
        return geometry.crop(grid, image, draw(st.integers(8, 48)))
    scale = draw(st.tuples(*[st.floats(0.01, 3)] * 2))
    shift = draw(st.tuples(*[st.floats(-4, 8)] * 2))
    rows, columns = (sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in image)
    return GridMap(grid, image, scale, shift, (rows[0], columns[0], rows[1], columns[1]))


def scene(grid_map, classes, seed, scale=1.0, ties=False, ignored=0.2, probes=2, bias=0.5):
    random = np.random.default_rng(seed)
    mask = random.integers(0, min(classes, IGNORE), grid_map.image).astype(np.uint8)
    mask[random.random(grid_map.image) < ignored] = IGNORE
    logits = random.normal(0, 2, (probes, grid_map.grid[0] * grid_map.grid[1], classes))
    logits += bias * random.normal(0, 2, classes)  # 0: every class wins somewhere, 2: few do
    return mask, torch.from_numpy((np.round(logits) if ties else logits) * scale).float()


def full(logits, grid_map):
    """Every class's logit at every pixel, in float64."""
    grid = logits.double().numpy().reshape(*grid_map.grid, -1)
    return np.einsum("yh,hwk,xw->yxk", upsampling(grid_map, 0), grid, upsampling(grid_map, 1), optimize=True)


def largest_corner(logits, grid_map):
    """The largest size of a logit among the patches that a pixel lies between."""
    size = logits.abs().amax(-1).double().numpy().reshape(grid_map.grid)
    rows, columns = (upsampling(grid_map, axis) > 0 for axis in (0, 1))
    across = np.where(columns[None], size[:, None], 0).max(2)  # h W
    return np.where(rows[:, :, None], across[None], 0).max(1)
