"""The tiles' runs against the up-sampling that they are made of."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segbench.geometry import upsampling
from segbench.kernels import tiles
from segbench.types import GridMap

LENGTH, PATCHES = st.integers(1, 80), st.integers(1, 6)


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(PATCHES, PATCHES),
    image=st.tuples(LENGTH, LENGTH),
    scale=st.tuples(*[st.floats(0.01, 3)] * 2),
    shift=st.tuples(*[st.floats(-4, 8)] * 2),
    part=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_runs_hold_every_seen_pixel_once_and_its_place_between_the_patches(grid, image, scale, shift, part):
    ends = [sorted(int(a * n) for a in part[axis::2]) for axis, n in enumerate(image)]
    grid_map = GridMap(grid, image, scale, shift, (ends[0][0], ends[1][0], ends[0][1], ends[1][1]))
    for axis in (0, 1):
        for whole, pixels in ((True, range(image[axis])), (False, range(*ends[axis]))):
            runs = tiles.runs(grid_map, axis, whole)
            right, found = upsampling(grid_map, axis), []
            for begin, length, low, high, share, change in zip(*runs, strict=True):
                assert 0 < length <= 32
                for step in range(length):
                    weights = np.zeros(grid[axis])
                    weights[low] = 1 - share - step * change
                    weights[high] += share + step * change
                    np.testing.assert_allclose(weights, right[begin + step], atol=1e-9)
                    found.append(begin + step)
            assert found == list(pixels)
