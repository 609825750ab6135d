"""What a pilot promises, kept in simulated studies; and which differences are planned for."""

import math
from statistics import fmean

import numpy as np
import pytest
from made_results import BIDIR, CAUSAL, keep, make

from segbench import stats
from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.leaderboard.power import needed, plans


def gap(random, images, truly):
    """Accuracy of a model minus its baseline's, over drawn images that are as hard for both."""
    count = random.integers(500, 1500, (images, 1))
    hard = random.normal(0.6, 0.2, images)
    shares = np.stack([hard + truly / 100 + random.normal(0, 0.06, images), hard + random.normal(0, 0.06, images)], 1)
    ours, theirs = stats.sampled_ratio(np.round(count * shares), np.repeat(count, 2, 1), stats.Units.among(images))
    return ours - theirs


@pytest.mark.parametrize("power", [0.8, 0.95])
def test_as_many_images_as_a_pilot_asks_for_find_the_difference_as_often_as_wished(power):
    """600 studies each; the pilot itself errs by a tenth in its standard error and hence a fifth in the images."""
    random = np.random.default_rng(1)
    errors = [gap(random, 60, 0).error for _ in range(20)]
    images = needed(fmean(errors), 60, 2.0, power)
    assert 100 < images < 300
    found = [gap(random, images, 2.0).estimate().interval.low > 0 for _ in range(600)]
    assert abs(np.mean(found) - power) < 0.05
    alike = [gap(random, images, 0.0).estimate().interval for _ in range(600)]
    assert abs(np.mean([one.low <= 0 <= one.high for one in alike]) - 0.95) < 0.025


def test_what_is_needed_for_the_smallest_difference_is_what_was_measured(tmp_path):
    results = make(tmp_path, [CAUSAL, BIDIR], images=60, examples=0)
    for plan in plans(results, 0.5, 0.8):
        assert needed(plan.error, plan.measured, plan.smallest * (1 + 1e-9), 0.8) == plan.measured
        normal = math.ceil(plan.measured * (2.801585 * plan.error / 0.5) ** 2)  # z(.975) + z(.8)
        assert normal <= plan.needed <= normal + 3


def test_few_units_need_more_than_the_root_says():
    """With three cities t(2) makes the interval; a difference that three find is not found by two."""
    assert needed(1.0, 3, 100.0, 0.8) == 2
    smallest = stats.student(0.975, 2) + stats.student(0.8, 2)
    assert smallest > 5
    assert needed(1.0, 3, smallest * 1.001, 0.8) == 3
    assert needed(0.0, 3, 0.5, 0.8) == 2


def test_every_paired_difference_of_the_leaderboard_is_planned_for(tmp_path):
    results = make(tmp_path, [CAUSAL, BIDIR], images=60, examples=0)
    found = {(one.model, one.quantity): one for one in plans(results, 0.5, 0.8)}
    shared = {"drop", "recovery", "delta_enc", "effect_incorrect", "effect_correct"}
    assert {name for model, name in found if model == CAUSAL.name} == shared
    assert {name for model, name in found if model == BIDIR.name} == shared | {
        "gain",
        "starvation_gap",
        "starvation_early",
    }
    drop, estimate = found[CAUSAL.name, "drop"], drop_recovery(results[0]).drop
    assert (drop.value, drop.error, drop.measured) == (estimate.value, estimate.error, 60)
    assert drop.half == pytest.approx((estimate.interval.high - estimate.interval.low) / 2)
    effect = found[CAUSAL.name, "effect_correct"]
    assert effect.unit == "images with a confusion"
    assert effect.measured == len(np.unique(results[1].arrays("patches")["image"]))


def test_a_pilot_is_told_as_such_and_whole_cities_are_counted(tmp_path):
    (limited,) = make(tmp_path, [CAUSAL], ["probe"], images=30, examples=0, limit=30)
    assert {one.pilot for one in plans([limited], 0.5, 0.8)} == {"limited to 30 images"}
    about = {**limited.about, "clusters": [f"city {index % 5}" for index in range(30)]}
    of_cities = keep(tmp_path / "cities", CAUSAL, "probe", {"counts": limited.arrays("counts")}, about)
    assert {(one.unit, one.measured, one.pilot) for one in plans([of_cities], 0.5, 0.8)} == {("clusters", 5, None)}


def test_a_single_image_plans_nothing_and_says_so(tmp_path, caplog):
    one = make(tmp_path, [CAUSAL], ["probe"], images=1, examples=0)
    assert plans(one, 0.5, 0.8) == []
    assert "one image tells no spread of drop" in caplog.text
