"""The leaderboard's files."""

import json
from dataclasses import replace

import pytest
from made_results import BIDIR, CAUSAL, make

from segbench.leaderboard import table
from segbench.leaderboard.publish import publish


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make(tmp_path_factory.mktemp("store"), [CAUSAL, BIDIR], images=8, examples=0)


def test_the_same_results_give_the_same_bytes_in_any_order(results, tmp_path):
    first, second = publish(results, tmp_path / "a"), publish(results[::-1], tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_every_form_holds_the_same_numbers(results, tmp_path):
    publish(results, tmp_path)
    rows = json.loads((tmp_path / "leaderboard.json").read_text())
    assert rows == table.rows(table.build(results))
    lines = (tmp_path / "leaderboard.csv").read_text().splitlines()
    cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert float(cells["recovery_low"]) == rows[0]["recovery_low"]
    assert f"{rows[0]['recovery']:.1f} [{rows[0]['recovery_low']:.1f}" in (tmp_path / "leaderboard.md").read_text()
    assert (tmp_path / "seeds.csv").read_text().count("\n") == 1


@pytest.mark.parametrize("limit", [4, None])
def test_what_does_not_count_is_in_no_file_but_the_records_and_marked_there(tmp_path, limit):
    """Limited runs, and whole runs on a part of the data set, with several seeds each."""
    cells = [one for seed in (0, 1) for one in make(tmp_path, [CAUSAL], images=4, examples=0, seed=seed, limit=limit)]
    part = {"partial": {"val": {"images": 4, "published": 9}}}
    if limit is None:
        cells = [replace(one, about=one.about | part) if one.kind == "probe" else one for one in cells]
    publish(cells, tmp_path / "out")
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert json.loads(texts["leaderboard.json"]) == []
    assert texts["leaderboard.csv"].count("\n") == texts["seeds.csv"].count("\n") == 1
    assert f"Left out: {CAUSAL.name} on probe-scenes (" in texts["leaderboard.md"]
    assert f"| {CAUSAL.name}" not in texts["leaderboard.md"]
    mark = ",4,," if limit else ",,4 of 9 val images,"
    lines = texts["records.csv"].splitlines()[1:]
    assert len(lines) == sum(len(one.measures) for one in cells)
    assert all(mark in line for line in lines)
