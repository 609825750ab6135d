"""The leaderboard's files."""

import json

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
