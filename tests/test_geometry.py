"""Grid maps against torch's own sampling, and the ceiling that tells a right geometry from a wrong one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from segbench import geometry
from segbench.types import IGNORE, GridMap

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def resampled(logits: np.ndarray, grid_map: GridMap) -> np.ndarray:
    """The product with the two matrices, [k, h, w] to [k, H, W]."""
    return geometry.upsampling(grid_map, 0) @ logits @ geometry.upsampling(grid_map, 1).T


def sampled_by_torch(logits: np.ndarray, grid_map: GridMap) -> np.ndarray:
    """grid_sample of the same places, in its own units: -1 and 1 are the outer edges of the grid."""
    y, x = ((grid_map.coordinates(axis) + 0.5) * 2 / grid_map.grid[axis] - 1 for axis in (0, 1))
    places = torch.from_numpy(np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1))[None]
    source = torch.from_numpy(logits)[None]
    return F.grid_sample(source, places, mode="bilinear", padding_mode="border", align_corners=False)[0].numpy()


@given(SIZES, GRIDS)
def test_squash_is_torch_interpolate(image, grid):
    logits = np.random.default_rng(0).normal(size=(3, *grid))
    expected = F.interpolate(torch.from_numpy(logits)[None], image, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resampled(logits, GridMap.squash(grid, image)), expected.numpy(), atol=1e-6)


@given(SIZES, GRIDS, st.integers(8, 40))
def test_pad_and_crop_are_torch_grid_sample_with_border_padding(image, grid, side):
    logits = np.random.default_rng(1).normal(size=(2, *grid))
    for grid_map in (geometry.pad(grid, image), geometry.crop(grid, image, side)):
        np.testing.assert_allclose(resampled(logits, grid_map), sampled_by_torch(logits, grid_map), atol=1e-6)


@given(SIZES, GRIDS)
def test_weights_of_every_pixel_sum_to_one(image, grid):
    weights = geometry.upsampling(geometry.pad(grid, image), 0)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)


def test_pad_keeps_the_aspect_and_sees_everything():
    grid_map = geometry.pad((24, 24), (480, 640))
    assert grid_map.coordinates(0)[0] + 0.5 == pytest.approx(80.5 * 24 / 640)  # 80 rows of padding above
    assert grid_map.coordinates(1)[0] + 0.5 == pytest.approx(0.5 * 24 / 640)
    assert geometry.seen_mask(grid_map).all()
    held = np.unique(geometry.patch_index(grid_map))
    assert held.min() == 72  # three rows of 24 patches are padding alone
    assert held.max() == 24 * 24 - 72 - 1


def test_crop_of_a_4_to_3_image_sees_three_quarters():
    grid_map = geometry.crop((24, 24), (480, 640), 336)
    assert grid_map.seen == (0, 80, 480, 560)
    assert geometry.seen_mask(grid_map).mean() == 0.75
    assert (geometry.patch_index(grid_map)[:, :80] == -1).all()
    mask = np.zeros((480, 640), np.uint8)
    mask[:, 320:] = IGNORE
    assert geometry.coverage(mask, grid_map) == (480 * 240, 480 * 320)
    assert (geometry.seen_truth(mask, grid_map) != IGNORE).sum() == 480 * 240


def test_crop_truncates_the_long_side_as_clip_does():
    grid_map = geometry.crop((24, 24), (375, 500), 336)  # 336 * 500 / 375 = 448
    assert grid_map.scale == pytest.approx((24 / 375, 24 / 375))
    odd = geometry.crop((24, 24), (427, 640), 336)  # 503.6 becomes 503, of which 83 are cut off on the left
    assert odd.scale[1] == pytest.approx(503 / 640 * 24 / 336)
    assert odd.shift[1] == pytest.approx(-83 * 24 / 336)


def test_patch_index_is_raster_order():
    index = geometry.patch_index(GridMap.squash((2, 3), (4, 9)))
    np.testing.assert_array_equal(index, np.kron([[0, 1, 2], [3, 4, 5]], np.ones((2, 3), int)))


@given(st.integers(0, 2**32), SIZES, GRIDS)
def test_patch_labels_are_the_majority_of_labelled_pixels(seed, image, grid):
    random = np.random.default_rng(seed)
    mask = random.choice([0, 1, 2, IGNORE], image).astype(np.uint8)
    grid_map = geometry.pad(grid, image)
    index = geometry.patch_index(grid_map)
    expected = []
    for patch in range(grid[0] * grid[1]):
        held = [int(label) for label in mask[index == patch] if label != IGNORE]
        expected.append(max(sorted(set(held)), key=held.count) if held else IGNORE)
    np.testing.assert_array_equal(geometry.patch_labels(mask, grid_map, 3), expected)


def test_the_smallest_id_wins_a_tie_and_unlabelled_pixels_have_no_vote():
    mask = np.array([[2, 1, IGNORE, IGNORE, 0, IGNORE], [1, 2, IGNORE, IGNORE, IGNORE, IGNORE]], np.uint8)
    np.testing.assert_array_equal(geometry.patch_labels(mask, GridMap.squash((1, 3), (2, 6)), 3), [1, IGNORE, 0])


@given(st.integers(0, 2**32), SIZES, GRIDS)
def test_area_fractions_are_the_mean_of_a_finely_divided_mask(seed, image, grid):
    mask = np.random.default_rng(seed).choice([0, 1, 2, IGNORE], image).astype(np.uint8)
    fine = np.kron(mask, np.ones(grid, np.uint8))  # every pixel in h x w parts: patches hold whole parts
    parts = fine.reshape(grid[0], image[0], grid[1], image[1]).transpose(0, 2, 1, 3).reshape(grid[0] * grid[1], -1)
    counts = np.stack([(parts == label).sum(1) for label in range(3)], 1)
    expected = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fractions = geometry.area_fractions(mask, GridMap.squash(grid, image), 3)
    np.testing.assert_allclose(fractions, expected, atol=1e-9)


def test_a_mask_of_another_size_than_the_map_is_no_input():
    with pytest.raises(AssertionError, match="grid map"):
        geometry.patch_labels(np.zeros((4, 4), np.uint8), GridMap.squash((2, 2), (4, 5)), 3)


def test_the_models_picture_of_the_truth_is_its_nearest_pixels():
    mask = np.random.default_rng(3).integers(0, 5, (31, 47)).astype(np.uint8)
    shown, grid_map = geometry.at_model(mask, GridMap.squash((4, 6), mask.shape), 7.0)
    rows, columns = ((np.arange(n) + 0.5) * length / n for n, length in ((28, 31), (42, 47)))
    np.testing.assert_array_equal(shown, mask[rows.astype(int)[:, None], columns.astype(int)])
    assert grid_map == GridMap.squash((4, 6), (28, 42))


@pytest.mark.parametrize("side", ["pad", "crop"])
def test_padding_is_no_ground_truth_and_what_is_cut_away_is_not_shown(side):
    mask = np.zeros((20, 40), np.uint8)
    mask[:, 10:30] = 1
    grid_map = geometry.pad((4, 4), mask.shape) if side == "pad" else geometry.crop((4, 4), mask.shape, 32)
    shown, _ = geometry.at_model(mask, grid_map, 8.0)
    assert shown.shape == (32, 32)
    if side == "pad":  # the image is the middle half, from row 8 on, at 0.8 of its size
        assert (shown[:8] == IGNORE).all()
        assert (shown[24:] == IGNORE).all()
        np.testing.assert_array_equal(shown[8:24, 8:24], 1)
        np.testing.assert_array_equal(shown[8:24, :8], 0)
    else:
        np.testing.assert_array_equal(shown, 1)
