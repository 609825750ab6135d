"""Reported numbers beside measured ones: of the same model and data, and in the same unit."""

from dataclasses import replace

import pytest
from made_results import BIDIR, CAUSAL, make

from segbench.leaderboard.against_reported import beside
from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.reported import Reported
from segbench.leaderboard.starvation_gap import starvation_gap

PART = {"val": {"images": 5, "published": 9}}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"), [CAUSAL, BIDIR], images=20, examples=0)


def reported(quantity, value=50.0, unit="%", key=None, model=BIDIR.name, data="scenes", digits=2):
    return Reported(
        "arXiv 1v1", "https://x", "Table 1", None, None, model, data, quantity, "miou", None, key, value, unit, digits,
        False, None,
    )  # fmt: skip


def one(results, kind, model=BIDIR):
    return next(result for result in results if (result.kind, result.model) == (kind, model.name))


@pytest.mark.parametrize("quantity", ["drop", "peak", "recovery", "delta_enc"])
def test_a_quantity_is_what_the_leaderboard_says(results, quantity):
    (row,) = beside([reported(quantity)], results)
    assert row.measured == getattr(drop_recovery(one(results, "probe")), quantity)
    assert row.difference == row.measured.value - 50
    assert (row.model, row.task, row.seed, row.mark) == (BIDIR.name, "probe-scenes", 0, None)


def test_inside_looks_at_the_interval_as_far_as_the_printed_digits_go(results):
    high = drop_recovery(one(results, "probe")).peak.interval.high
    assert [beside([reported("peak", high + more)], results)[0].inside for more in (-0.1, 0.004, 0.01)] == [
        *(True, True, False)
    ]
    assert beside([reported("peak", high + 0.4, digits=0)], results)[0].inside


def test_accuracies_and_gaps_of_patches_are_measured_in_the_reported_unit(results):
    gap = starvation_gap(one(results, "starvation"), one(results, "starvation", CAUSAL))
    (row,) = beside([reported("patch_gap", 0.1, "ratio", "0", digits=4)], results)
    assert row.measured.value == pytest.approx(gap.positions[0] / 100)
    assert row.measured.interval.low == pytest.approx(gap.intervals[0].low / 100)
    (row,) = beside([reported("patch_accuracy", 0.1, "ratio", "1", digits=4)], results)
    measure = next(m for m in one(results, "starvation").measures if m.key == "1")
    assert row.measured.value == pytest.approx(measure.value / 100)


def test_images_of_a_knockout_by_class(results):
    knockout = one(results, "knockout")
    name = knockout.about["classes"][0]
    (row,) = beside([reported("knockout_images", 10, "count", name)], results)
    assert row.measured.value == persistence(knockout, name).images


@pytest.mark.parametrize("change", [{"model": "other"}, {"model": None}, {"data": "ade20k"}, {"quantity": "gqa"}])
def test_other_models_data_and_quantities_are_not_measured(results, change):
    (row,) = beside([replace(reported("peak"), **change)], results)
    assert (row.measured, row.difference, row.inside) == (None, None, None)


def test_limited_partial_and_changed_runs_are_marked_and_never_inside(results, tmp_path):
    limited = make(tmp_path, [BIDIR], ["probe"], images=4, examples=0, limit=4)[0]
    partial = replace(one(results, "probe"), about=one(results, "probe").about | {"partial": PART})
    padded = replace(one(results, "probe"), model=f"{BIDIR.name}~preprocess=pad~weights=x")
    value = drop_recovery(limited).peak.value
    marks = [beside([reported("peak", value)], [cell])[0] for cell in (limited, partial, padded)]
    assert [row.mark for row in marks] == [
        *("limited to 4 images", "partial data: 5 of 9 val images", "preprocess=pad"),
    ]
    assert all(row.measured and row.inside is None for row in marks)
    own = replace(one(results, "probe"), model=f"{BIDIR.name}~weights=x")
    assert beside([reported("peak")], [own])[0].mark is None


def test_every_seed_has_its_row(results, tmp_path):
    again = make(tmp_path, [BIDIR], ["probe"], images=20, examples=0, seed=1)
    assert [row.seed for row in beside([reported("peak")], [*again, *results])] == [0, 1]
