"""Several processes on one cell, on gloo: the numbers of one process, and nobody waits for ever."""

import json

import pytest
import ranks

from segbench.distributed import Group
from segbench.errors import SpecError


def found(count, name):
    """What each process printed."""
    ended = ranks.finished(ranks.start(count, ranks.TESTS / "team_work.py", name))
    assert [code for code, _, _ in ended] == [0] * count, ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


def test_all_processes_learn_the_same_of_unequal_parts():
    first, *others = found(3, "exchanges")
    assert others == [first, first]
    assert first["sums"] == [[[6.0] * 3] * 2, [60.0]]
    assert first["large"] == [6.0, 3.0]
    assert first["long"] == [[0, ""], [100_000, ""], [200_000, ""]]
    assert first["messages"] == ["", "x", "xx"]
    assert first["nothing"] == ["", "", ""]
    assert first["shapes"] == [[[n], [n, 2]] for n in range(3)]
    assert first["types"] == ["int32"]
    assert first["agreed"] == {"from": 0}
    assert first["parts"] == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_process_that_fails_tells_the_others_and_all_go_on_in_step():
    first, second, third = found(3, "failures")
    assert first == third == ["process 1: no luck", 3.0] * 3
    assert second == [3.0] * 3


def test_processes_that_all_fail_stay_in_step():
    assert found(2, "all_fail") == [2.0, 2.0]


def test_whoever_is_left_learns_that_another_is_gone():
    ended = ranks.finished(ranks.start(3, ranks.TESTS / "team_work.py", "gone"))
    assert [code for code, _, _ in ended] == [0, 0, 9]
    for _, out, _ in ended[:2]:
        assert "another process of this run is gone" in out
        assert "the same command goes on from the last epoch" in out


def test_without_the_variables_of_torchrun_there_is_no_group():
    with pytest.raises(SpecError, match=r"LOCAL_RANK, .*start several processes with torchrun"):
        Group({"RANK": "0", "WORLD_SIZE": "2"})
