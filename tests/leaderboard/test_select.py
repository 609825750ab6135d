"""Which cells say something about which: by the fingerprints they read, and by how they were measured."""

from dataclasses import replace

import pytest
from made_results import BIDIR, CAUSAL, make

from segbench.leaderboard import select


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"), [CAUSAL, BIDIR], images=4, examples=0)


def one(results, kind, model):
    return next(result for result in results if (result.kind, result.model) == (kind, model.name))


def with_inputs(result, **changed):
    return replace(result, inputs={**result.inputs, **changed})


def test_a_cell_counts_for_the_probes_that_it_read(results):
    probe = one(results, "probe", BIDIR)
    assert select.reading(results, "knockout", probe) == one(results, "knockout", BIDIR)
    trained_again = replace(probe, fingerprint="0" * 64)
    assert select.reading(results, "knockout", trained_again) is None


def test_the_baseline_is_the_twin_of_the_card(results):
    assert select.baseline(results, one(results, "probe", BIDIR)) == one(results, "probe", CAUSAL)
    assert select.baseline(results, one(results, "probe", CAUSAL)) is None


@pytest.mark.parametrize("change", [{"task": {"epochs": 3}}, {"data": "other"}, {"seed": 1}, {"limit": 2}])
def test_a_twin_that_was_measured_otherwise_is_no_baseline(results, change):
    probe, twin = one(results, "probe", BIDIR), one(results, "probe", CAUSAL)
    assert select.baseline([with_inputs(twin, **change)], probe) is None


def test_a_starvation_pair_reads_the_probes_of_both(results):
    probe, theirs = one(results, "probe", BIDIR), one(results, "starvation", CAUSAL)
    assert select.starved(results, probe) == (one(results, "starvation", BIDIR), theirs)
    others = [result for result in results if result != theirs]
    assert select.starved(others, probe) is None
    stale = with_inputs(theirs, requires={"probe-scenes": "0" * 64})
    assert select.starved([*others, stale], probe) is None


def test_the_order_of_the_results_changes_nothing(results):
    assert select.of_kind(reversed(results), "probe") == select.of_kind(results, "probe")


def test_what_is_no_whole_run_says_why(results, tmp_path):
    probe, blocked = one(results, "probe", BIDIR), one(results, "knockout", BIDIR)
    part = {"train": {"images": 7, "published": 90}, "val": {"images": 5, "published": 9}}
    partial = replace(probe, about=probe.about | {"partial": part})
    told = "partial data: 7 of 90 train images, 5 of 9 val images"
    assert select.incomplete(probe, results) is None
    assert select.incomplete(partial) == told
    assert select.incomplete(blocked, [partial]) == told  # it read the probes of a part
    assert select.incomplete(blocked, results) is None
    assert select.incomplete(replace(partial, limit=4)) == f"limited to 4 images, {told}"
