"""The summaries of what is left of a confusion, by hand."""

import numpy as np
import pytest

from segbench.metrics.persistence import METRICS, curves

CONDITIONS, SITES = ("none", "blocked"), ("adapter", "llm.1")


def patches(n, n0, image):
    """`n` at the last site, by [pair][condition]; at the adapter all n0 are wrong."""
    n0 = np.asarray(n0, np.int32)
    last = np.asarray(n, np.int32)
    first = np.broadcast_to(n0[:, None], last.shape)
    return {"n": np.stack([first, last], 2).astype(np.int32), "n0": n0, "image": np.asarray(image, np.int32)}


def left(metric, *args, clusters=None):
    found = curves(metric, patches(*args), CONDITIONS, SITES, clusters)
    return {name: found[name]["llm.1"].value for name in CONDITIONS}


def test_three_summaries_of_hand_counts():
    """Ratios of 50, 100 and 30 % with nothing blocked; 0, 20 and 10 % with something."""
    given = [[5, 0], [20, 4], [12, 4]], [10, 20, 40], [0, 2, 2]
    assert left("persistence", *given) == pytest.approx({"none": 60, "blocked": 10})
    assert left("persistence_of_sums", *given) == pytest.approx({"none": 3700 / 70, "blocked": 800 / 70})
    assert left("persistence_median", *given) == pytest.approx({"none": 50, "blocked": 10})


@pytest.mark.parametrize("metric", METRICS)
def test_everything_is_left_at_the_adapter(metric):
    found = curves(metric, patches([[5, 0], [9, 1]], [10, 20], [0, 1]), CONDITIONS, SITES, None)
    assert {curve["adapter"].value for curve in found.values()} == {100.0}


def test_one_pair_moves_the_mean_and_not_the_median():
    usual = [[[5, 5]] * 9 + [[5, 5]], [10] * 10, range(10)]
    burst = [[[5, 5]] * 9 + [[500, 5]], [10] * 10, range(10)]
    assert left("persistence", *burst)["none"] > 10 * left("persistence", *usual)["none"] - 1
    assert left("persistence_median", *burst) == left("persistence_median", *usual)


@pytest.mark.parametrize("metric", METRICS)
def test_images_without_a_pair_are_no_units_and_their_cities_neither(metric):
    given = patches([[5, 0], [20, 4], [12, 4], [3, 3]], [10, 20, 40, 9], [0, 2, 2, 5])
    clusters = ["a", "b", "c", "c", "b", "a", "d"]  # of seven images; three have pairs, in two cities
    alone, together = (curves(metric, given, CONDITIONS, SITES, some)["none"]["llm.1"] for some in (None, clusters))
    assert (alone.units, together.units) == (3, 2)
    assert alone.value == together.value


@pytest.mark.parametrize("metric", METRICS)
def test_pairs_of_one_image_count_as_one(metric):
    """Twice the pairs, all the same: the error stays what it was."""
    random = np.random.default_rng(0)
    n0 = random.integers(8, 40, 60)
    n = random.binomial(n0[:, None], 0.4, (60, 2))
    once = curves(metric, patches(n, n0, range(60)), CONDITIONS, SITES, None)["blocked"]["llm.1"]
    twice = np.repeat(np.arange(60), 2)
    again = curves(metric, patches(n[twice], n0[twice], twice), CONDITIONS, SITES, None)["blocked"]["llm.1"]
    assert again.error == pytest.approx(once.error)
    assert again.value == pytest.approx(once.value)
