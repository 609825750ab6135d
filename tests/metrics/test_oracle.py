"""The oracle must be nearly perfect where the geometry is right, and far from it where it is not."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from segbench import geometry, stats
from segbench.metrics import confusion, oracle
from segbench.types import GridMap

CLASSES, GRID = 30, (24, 24)
Features = Callable[[np.ndarray, GridMap], np.ndarray]
Maps = dict[str, Callable[[tuple[int, int]], GridMap]]

RIGHT: Maps = {
    "squash": lambda image: GridMap.squash(GRID, image),
    "pad": lambda image: geometry.pad(GRID, image),
    "crop": lambda image: geometry.crop(GRID, image, 336),
}


def voronoi(count: int) -> Iterator[np.ndarray]:
    """Masks of eight cells of random classes, landscape and portrait."""
    random = np.random.default_rng(0)
    for index in range(count):
        image = (240, 360) if index % 2 else (360, 240)
        y, x = np.mgrid[: image[0], : image[1]]
        seeds = random.uniform(0, image, (8, 2))
        nearest = ((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2).argmin(-1)
        yield random.choice(CLASSES, 8, replace=False)[nearest].astype(np.uint8)


def score(features: Features, grid_map_of: Callable[[tuple[int, int]], GridMap]) -> float:
    """mIoU of `features(mask, map)` decided at the pixels that the map says they belong to."""
    total = np.zeros((CLASSES, 3), np.int64)
    for mask in voronoi(12):
        grid_map = grid_map_of(mask.shape)
        prediction = oracle.predict(features(mask, grid_map), grid_map)
        total += confusion.counts(prediction, geometry.seen_truth(mask, grid_map), CLASSES)
    return float(stats.miou(total))


def perfect(mask: np.ndarray, grid_map: GridMap) -> np.ndarray:
    return geometry.area_fractions(mask, grid_map, CLASSES)


@pytest.mark.parametrize("name", RIGHT)
def test_perfect_patches_reach_95_miou(name):
    assert score(perfect, RIGHT[name]) > 95


@pytest.mark.parametrize("name", RIGHT)
def test_counts_are_those_of_the_perfect_patches(name):
    total = sum(oracle.counts(mask, RIGHT[name](mask.shape), CLASSES) for mask in voronoi(12))
    assert float(stats.miou(total)) == score(perfect, RIGHT[name])


@pytest.mark.parametrize("name", ["pad", "crop"])
def test_a_grid_stretched_over_the_image_falls_below_70(name):
    def processed(mask: np.ndarray, _: GridMap) -> np.ndarray:
        return perfect(mask, RIGHT[name](mask.shape))

    assert score(processed, RIGHT["squash"]) < 70


def test_labels_shifted_by_one_class_fall_below_70():
    assert score(lambda mask, grid_map: np.roll(perfect(mask, grid_map), 1, axis=1), RIGHT["squash"]) < 70


def test_columns_read_as_rows_fall_below_70_on_a_grid_that_is_not_square():
    def transposed(mask: np.ndarray, grid_map: GridMap) -> np.ndarray:
        h, w = grid_map.grid
        return perfect(mask, grid_map).reshape(h, w, CLASSES).transpose(1, 0, 2).reshape(h * w, CLASSES)

    def wide(image: tuple[int, int]) -> GridMap:
        return GridMap.squash((18, 32), image)

    assert score(perfect, wide) > 95
    assert score(transposed, wide) < 70


def test_half_a_patch_of_shift_costs_what_a_paper_would_report():
    def shifted(image: tuple[int, int]) -> GridMap:
        right = GridMap.squash(GRID, image)
        return GridMap(right.grid, right.image, right.scale, (0.5, 0.5), right.seen)

    def processed(mask: np.ndarray, _: GridMap) -> np.ndarray:
        return perfect(mask, RIGHT["squash"](mask.shape))

    assert score(processed, shifted) < score(perfect, RIGHT["squash"]) - 2


def test_patches_without_ground_truth_say_nothing():
    mask = np.full((24, 24), 255, np.uint8)
    assert oracle.counts(mask, GridMap.squash((4, 4), (24, 24)), 3).sum() == 0


def test_the_smallest_id_wins_a_tie():
    mask = np.array([[2, 1]], np.uint8)
    total = oracle.counts(mask, GridMap.squash((1, 1), (1, 2)), 3)
    np.testing.assert_array_equal(total, [[0, 0, 0], [1, 1, 2], [0, 1, 0]])
