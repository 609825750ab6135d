"""Which device a process takes, and which cells."""

import pytest
import torch

from segbench.cli import processes
from segbench.team import Team


@pytest.mark.parametrize(("name", "taken"), [("cpu", "cpu"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_every_process_has_a_gpu_of_its_own_unless_one_is_named(monkeypatch, name, taken):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes.device(name) == taken
    assert processes.device("auto") == ("cuda:1" if torch.cuda.is_available() else "cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert processes.device(name) == name


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with processes.team() as team:
        assert type(team) is Team
