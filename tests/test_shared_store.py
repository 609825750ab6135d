"""A cell that a team makes, seen from the process that does not write."""

import numpy as np
import pytest

from segbench.errors import StoreError
from segbench.shared_store import SharedStore
from segbench.store import Store
from segbench.team import Team

NAME = ("m", "t", "f" * 64)
ARRAYS = {"a": np.arange(3)}


class Second(Team):
    """The second of two, whose first one agrees to everything."""

    rank, size = 1, 2

    def agree(self, value):
        return True


def test_only_the_first_process_writes(tmp_path):
    for cell in (SharedStore(tmp_path / str(team.rank), team).cell(*NAME) for team in (Team(), Second())):
        cell.save_arrays("kept", ARRAYS)
        cell.save_checkpoint(ARRAYS, {})
        cell.finish({}, [])
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()


def test_every_process_reads_the_same_checkpoint(tmp_path):
    Store(tmp_path).cell(*NAME).save_checkpoint(ARRAYS, {"epochs": 2})
    arrays, facts = SharedStore(tmp_path, Second()).cell(*NAME).load_checkpoint()
    np.testing.assert_array_equal(arrays["a"], ARRAYS["a"])
    assert facts == {"epochs": 2}


def test_a_process_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"process 1 cannot read .*--output must name a folder"):
        SharedStore(tmp_path, Second()).cell(*NAME).load_checkpoint()


def test_a_lock_that_the_first_process_holds_is_held_by_all(tmp_path):
    cell = SharedStore(tmp_path, Second()).cell(*NAME)
    with cell.lock() as mine:
        assert mine
