"""`segbench leaderboard build` on a store that holds nothing that counts."""

import pytest
from command import segbench
from made_results import BIDIR, CAUSAL, keep, make


def partial(folder):
    """Probe cells on a part of the published data set."""
    for one in make(folder / "whole", [CAUSAL, BIDIR], ["probe"], images=4, examples=0):
        about = one.about | {"partial": {"val": {"images": 4, "published": 9}}}
        model = CAUSAL if one.model == CAUSAL.name else BIDIR
        keep(folder, model, "probe", {"counts": one.arrays("counts")}, about, one.measures)


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (lambda folder: make(folder, [CAUSAL, BIDIR], images=4, examples=0, limit=4), "limited to 4 images"),
        (partial, "partial data: 4 of 9 val images"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_store_of_limited_or_partial_cells_has_no_leaderboard(tmp_path, fill, reason, form):
    fill(tmp_path / "store")
    said = segbench("leaderboard", "build", "--output", tmp_path / "store", "--no-figures", *form)
    assert said.code == 4
    assert "holds only runs that do not count" in said.err
    assert f"{CAUSAL.name} on probe-scenes ({reason})" in said.err
    assert said.out.strip() == "[]" if form else f"| {CAUSAL.name}" not in said.out


def test_one_whole_run_beside_limited_ones_is_a_leaderboard(tmp_path):
    make(tmp_path, [CAUSAL], ["probe"], images=4, examples=0, limit=4)
    make(tmp_path, [BIDIR], ["probe"], images=6, examples=0)
    said = segbench("leaderboard", "build", "--output", tmp_path, "--no-figures")
    assert said.code == 0
    assert f"| {BIDIR.name}" in said.out
    assert f"Left out: {CAUSAL.name} on probe-scenes (limited to 4 images)" in said.out
