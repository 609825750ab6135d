"""The starvation gap by hand: pixels are pooled over images and positions before any ratio is taken."""

import numpy as np
import pytest
from made_results import BIDIR, CAUSAL, keep, make

from segbench.errors import CellError
from segbench.leaderboard.starvation_gap import starvation_gap


def cell(root, model, hit, count, images=("x", "y")):
    about = {"site": "llm.1", "grid": [2, 2], "images": list(images)}
    arrays = {"positions": {"hit": np.asarray(hit, np.int32), "count": np.asarray(count, np.int32)}}
    return keep(root, model, "starvation", arrays, about)


def test_gaps_of_hand_counts(tmp_path):
    count = [[10, 10, 0, 0], [10, 30, 0, 10]]
    causal = cell(tmp_path, CAUSAL, [[2, 5, 0, 0], [4, 15, 0, 9]], count)
    bidir = cell(tmp_path, BIDIR, [[8, 10, 0, 0], [8, 20, 0, 7]], count)
    found = starvation_gap(bidir, causal)
    expected = [100 * (16 - 6) / 20, 100 * (30 - 20) / 40, np.nan, 100 * (7 - 9) / 10]
    np.testing.assert_allclose(found.positions, expected)
    assert found.intervals[2] is None
    assert found.first.value == pytest.approx(100 * (46 - 26) / 60)
    assert found.early.value == pytest.approx(100 * (53 - 35) / 70)
    assert (found.grid, found.images, found.sites) == ((2, 2), 2, ("llm.1", "llm.1"))


def test_nothing_labelled_has_no_gap(tmp_path):
    nothing = [[0, 0, 0, 5], [0, 0, 0, 5]]
    found = starvation_gap(cell(tmp_path, BIDIR, nothing, nothing), cell(tmp_path, CAUSAL, nothing, nothing))
    assert found.first is None
    assert found.early.value == 0


def test_other_images_cannot_be_compared(tmp_path):
    count = [[10] * 4] * 2
    with pytest.raises(CellError, match="differ in their images"):
        starvation_gap(cell(tmp_path, BIDIR, count, count), cell(tmp_path, CAUSAL, count, count, ("x", "z")))


def test_more_patches_leave_less_doubt(tmp_path):
    causal, bidir = make(tmp_path, [CAUSAL, BIDIR], ["starvation"], images=30)
    found = starvation_gap(bidir, causal)
    assert found.first.interval.low > 0
    assert found.early.interval.high - found.early.interval.low < found.first.interval.high - found.first.interval.low
