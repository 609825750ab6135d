"""Knockout curves by hand, and the verdict on runs whose order is known."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import CAUSAL, keep, make

from segbench.leaderboard.knockout_summary import persistence

SITES = ("adapter", "llm.1", "llm.2")
LEFT = {"none": 0.66, "incorrect": 0.52, "correct": 0.75, "random": 0.67}


def knockout(root, n, n0, image, conditions=("none", "incorrect")):
    patches = {"n": n, "n0": n0, "image": image, "class": [0] * (len(n0) - 1) + [1]}
    about = {"sites": list(SITES), "conditions": list(conditions), "all_classes": ["a", "b"]}
    arrays = {"patches": {name: np.asarray(one, np.int32) for name, one in patches.items()}}
    return keep(root, CAUSAL, "knockout", arrays, about)


def run(root, order):
    """A knockout cell whose conditions end where those named in `order` do in the paper's own order."""
    model = replace(CAUSAL, left=tuple(LEFT[name] for name in order))
    return persistence(make(root, [model], ["knockout"], images=40)[0])


def test_persistence_is_the_mean_over_pairs_of_n_over_n0(tmp_path):
    """Three (image, class) pairs; the ratio of sums would be 16/30 at the last layer."""
    n = [[[10, 8, 5], [10, 5, 0]], [[10, 10, 10], [10, 6, 5]], [[10, 4, 1], [10, 9, 20]]]
    found = persistence(knockout(tmp_path, n, [10, 10, 10], [0, 0, 3]))
    assert found.curves["none"]["adapter"].value == 100
    assert found.curves["none"]["llm.1"].value == pytest.approx(100 * (0.8 + 1.0 + 0.4) / 3)
    assert found.at_last_layer("none").value == pytest.approx(100 * (0.5 + 1.0 + 0.1) / 3)
    assert found.at_last_layer("incorrect").value == pytest.approx(100 * (0 + 0.5 + 2.0) / 3)
    assert (found.images, found.pairs, found.patches) == (2, 3, 30)


def test_ratios_of_pairs_with_more_patches_weigh_no_more(tmp_path):
    found = persistence(knockout(tmp_path, [[[10, 5, 5]] * 2, [[40, 0, 0]] * 2], [10, 40], [0, 1]))
    assert found.at_last_layer("none").value == pytest.approx(25)


def test_one_class_alone(tmp_path):
    result = knockout(tmp_path, [[[10, 8, 5]] * 2, [[10, 4, 1]] * 2], [10, 10], [0, 1])
    assert persistence(result, "b").at_last_layer("none").value == pytest.approx(10)


def test_the_papers_order_is_told_as_such(tmp_path):
    found = run(tmp_path, ("none", "incorrect", "correct", "random"))
    assert found.verdict() == "as the paper"
    assert found.effects["incorrect"].interval.high < 0 < found.effects["correct"].interval.low
    left = {name: found.at_last_layer(name).value for name in found.curves}
    assert found.effects["incorrect"].value == pytest.approx(left["incorrect"] - left["random"])


def test_the_reversed_order_is_not(tmp_path):
    assert run(tmp_path, ("none", "correct", "incorrect", "random")).verdict() == "against the paper"


def test_one_effect_on_the_other_side_is_enough_to_speak_against_it(tmp_path):
    assert run(tmp_path, ("none", "incorrect", "incorrect", "random")).verdict() == "against the paper"


def test_one_effect_alone_decides_nothing(tmp_path):
    assert run(tmp_path, ("none", "incorrect", "random", "random")).verdict() == "undecided"


def test_without_the_random_control_there_is_no_verdict(tmp_path):
    found = persistence(knockout(tmp_path, [[[10, 8, 5]] * 2, [[10, 4, 1]] * 2], [10, 10], [0, 1]))
    assert found.effects == {}
    assert found.verdict() is None
