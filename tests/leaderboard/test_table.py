"""The table: every number where it belongs, and nothing where nothing was measured."""

from dataclasses import replace

import pandas as pd
import pytest
from made_results import BIDIR, CAUSAL, make

from segbench.leaderboard import table
from segbench.leaderboard.drop_recovery import drop_recovery, gain
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.starvation_gap import starvation_gap
from segbench.types import Interval, Measure

HOSTILE = "<script>alert(1)</script> | [x](javascript:y) `z`\u202e"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"), [CAUSAL, BIDIR], images=12, examples=0)


def test_a_row_holds_what_the_summaries_say(results):
    frame = table.build(results)
    causal, blocked, starved, bidir, bidir_blocked, bidir_starved = results
    row = frame.loc[frame["model"] == BIDIR.name].iloc[0]
    anatomy, gap = drop_recovery(bidir), starvation_gap(bidir_starved, starved)
    assert list(frame["model"]) == [BIDIR.name, CAUSAL.name]  # the higher peak first
    assert row["recovery"] == anatomy.recovery.value
    assert (row["drop_low"], row["drop_high"]) == (anatomy.drop.interval.low, anatomy.drop.interval.high)
    assert row["peak_layer"] == anatomy.peak_layer
    assert row["gain"] == gain(bidir, causal).value
    assert row["starvation_gap"] == gap.first.value
    assert row["starvation_early"] == gap.early.value
    assert row["knockout_random"] == persistence(bidir_blocked).at_last_layer("random").value
    assert row["effect_correct"] == persistence(bidir_blocked).effects["correct"].value
    assert frame["knockout_order"].iloc[1] == persistence(blocked).verdict() == "as the paper"
    assert (row["oracle"], row["coverage"], row["images"], row["data"]) == (88.4, 100.0, 12, "scenes")


def test_what_was_not_measured_stays_absent(results):
    frame = table.build([one for one in results if one.kind == "probe" and one.model == BIDIR.name])
    absent = ["gain", "gain_low", "starvation_gap", "knockout_none", "effect_correct", "knockout_order", "limit"]
    assert frame[absent].isna().all(axis=None)
    assert "What attention does" not in table.markdown(frame)
    assert not set(absent) & set(table.rows(frame)[0])
    assert "nan" not in (table.markdown(frame) + table.csv(frame)).lower()


def test_no_results_make_an_empty_table():
    frame = table.build([])
    assert table.markdown(frame) == "No finished probe cell.\n"
    assert table.csv(frame).count("\n") == 1
    assert table.rows(frame) == []


def test_limited_runs_are_left_out_and_named(results, tmp_path):
    limited = make(tmp_path, [CAUSAL], ["probe"], images=4, examples=0, limit=4)
    frame = table.build([*results, *limited])
    assert len(frame) == 2
    assert f"Left out: {CAUSAL.name} on probe-scenes (limited to 4 images)." in table.markdown(frame)
    assert list(table.build([*results, *limited], limited=True)["limit"].dropna()) == [4]
    assert set(table.records([*results, *limited])["limit"].dropna()) == {4}


def test_a_limited_twin_is_no_baseline(results, tmp_path):
    limited = make(tmp_path, [BIDIR], ["probe"], images=4, examples=0, limit=4)
    causal = [one for one in results if one.model == CAUSAL.name]
    assert table.build([*causal, *limited], limited=True)["gain"].isna().all()


PART = {"val": {"images": 5, "published": 2000}}


def partial(results):
    """The same cells as if only a part of the data set had been there; only probe cells know."""
    return [replace(one, about=one.about | {"partial": PART}) if one.kind == "probe" else one for one in results]


def test_runs_on_a_part_of_the_data_are_left_out_and_named(results):
    frame = table.build(partial(results))
    assert frame.empty
    assert f"{CAUSAL.name} on probe-scenes (partial data: 5 of 2000 val images)" in table.markdown(frame)
    shown = table.build(partial(results), limited=True)
    assert set(shown["partial"]) == {"5 of 2000 val images"}
    assert "5 of 2000 val images" in table.markdown(shown)
    assert {row["partial"] for row in table.rows(shown)} == {"5 of 2000 val images"}


def test_every_record_of_a_part_of_the_data_says_so_even_where_it_reads_another_cell(results):
    records = table.records(partial(results))
    assert set(records["kind"]) == {"probe", "knockout", "starvation"}
    assert set(records["partial"]) == {"5 of 2000 val images"}
    assert table.records(results)["partial"].isna().all()
    assert ",5 of 2000 val images," in table.csv(records)


def test_seeds_of_a_part_of_the_data_are_not_pooled_with_whole_ones(results, tmp_path):
    again = make(tmp_path, [CAUSAL], ["probe"], images=12, examples=0, seed=1)
    both = table.build([*partial(again), *(one for one in results if one.kind == "probe")], limited=True)
    assert table.spread(both).empty


def test_knockouts_are_summed_up_in_three_ways(results):
    knockout = next(one for one in results if (one.kind, one.model) == ("knockout", BIDIR.name))
    row = table.build(results).set_index("model").loc[BIDIR.name]
    for name, metric in {
        "knockout_none": "persistence",
        "knockout_none_sums": "persistence_of_sums",
        "knockout_none_median": "persistence_median",
    }.items():
        told = persistence(knockout, metric=metric).at_last_layer("none")
        assert (row[name], row[f"{name}_low"]) == (told.value, told.interval.low)
    assert len({row[f"knockout_none{short}"] for short in ("", "_sums", "_median")}) == 3
    assert "What is left of confusions" in table.markdown(table.build(results))


def test_controls_stand_beside_the_oracle(results):
    probe = next(one for one in results if (one.kind, one.model) == ("probe", BIDIR.name))
    layer = drop_recovery(probe).peak_layer
    more = [Measure("shuffled_miou", value, "%", 12, site) for site, value in (("encoder", 3.0), ("llm.1", 4.5))]
    more += [Measure("position_miou", 11.0, "%", 12, interval=Interval(10.0, 12.0))]
    more += [Measure("miou_fg20", 60.0 + at, "%", 12, f"llm.{at}") for at in range(1, 9)]
    row = table.rows(table.build([replace(probe, measures=(*probe.measures, *more))]))[0]
    assert (row["shuffled"], row["position"], row["position_low"], row["miou_fg20"]) == (4.5, 11.0, 10.0, 60.0 + layer)
    assert not {"shuffled", "position", "miou_fg20"} & set(table.rows(table.build([probe]))[0])


def test_cells_cannot_open_markup_or_formulas(results):
    probe = results[0]
    text = table.markdown(table.build([replace(probe, model=HOSTILE)]))
    assert "<script>" not in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| \[x\](javascript:y) \`z\`" in text
    assert "\u202e" not in text
    assert "\n'=1+1," in table.csv(table.build([replace(probe, model="=1+1")]))


def test_seeds_keep_their_rows_and_their_spread_stands_apart(results, tmp_path):
    again = make(tmp_path, [CAUSAL, BIDIR], images=12, examples=0, seed=1)
    frame = table.build([*results, *again])
    assert sorted(frame["seed"]) == [0, 0, 1, 1]
    spread = table.spread(frame)
    row = spread.loc[(spread["model"] == BIDIR.name) & (spread["column"] == "recovery")].iloc[0]
    seeds = frame.loc[frame["model"] == BIDIR.name, "recovery"]
    assert row["seeds"] == 2
    assert (row["mean"], row["lowest"], row["highest"]) == pytest.approx(
        (seeds.mean(), seeds.min(), seeds.max()), abs=1e-4
    )
    told = f"{row['mean']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f})"
    assert told in table.markdown(frame).partition("Over probe seeds")[2]


def test_one_seed_has_no_spread(results):
    frame = table.build(results)
    assert table.spread(frame).empty
    assert "Over probe seeds" not in table.markdown(frame)


def test_a_number_that_one_seed_lacks_says_of_how_many_it_is(tmp_path):
    cells = [make(tmp_path, [CAUSAL], examples=0, images=6, seed=seed) for seed in range(3)]
    frame = table.build([one for seeds in cells for one in seeds if (one.kind, one.seed) != ("knockout", 1)])
    spread = table.spread(frame).set_index("column")["seeds"]
    assert (spread["peak"], spread["knockout_none"]) == (3, 2)
    line = next(one for one in table.markdown(frame).split("Over probe seeds")[1].splitlines() if "left, none" in one)
    assert line.rstrip(" |").endswith(", 2 seeds)")


def test_records_are_the_measures_of_every_cell(results):
    records = table.records(results)
    assert len(records) == sum(len(one.measures) for one in results)
    row = records.loc[(records["model"] == CAUSAL.name) & (records["metric"] == "miou")].iloc[0]
    measure = next(one for one in results[0].measures if one.metric == "miou")
    assert (row["site"], row["value"], row["low"]) == (measure.site, measure.value, measure.interval.low)
    assert pd.isna(records.loc[records["metric"] == "coverage", "low"]).all()
