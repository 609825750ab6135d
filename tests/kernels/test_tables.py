"""The tables against the geometry that they are made of."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from upsampled import grid_maps

from segbench.geometry import between
from segbench.kernels import tables


@settings(max_examples=200, deadline=None)
@given(grid_map=grid_maps())
def test_runs_tile_the_seen_columns_and_walk_where_the_geometry_says(grid_map):
    runs = tables.runs(grid_map)
    low, way = between(grid_map, 1)
    at = []
    for cell, (start, end), (first, step) in zip(runs.cell, pairwise(runs.start), runs.way, strict=True):
        assert 0 < end - start <= np.ceil(1 / grid_map.scale[1])
        assert (low[start:end] == cell).all()
        np.testing.assert_allclose(way[start:end], first + step * np.arange(end - start), atol=1e-5)
        at += range(start, end)
    assert at == list(range(grid_map.seen[1], grid_map.seen[3]))


@settings(max_examples=100, deadline=None)
@given(grid_map=grid_maps())
def test_every_pixel_row_and_column_is_in_its_cell(grid_map):
    for number in (0, 1):
        axis = tables.axis(grid_map, number)
        for cell, (start, end) in enumerate(pairwise(axis.whole)):
            assert (axis.low[start:end] == cell).all()
        assert (axis.whole[0], axis.whole[-1]) == (0, grid_map.image[number])
        assert len(axis.way32) == len(axis.low) + tables.PADDING
