"""A run that was killed and started again ends in the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs

from segbench.errors import Stopped
from segbench.store import CHECKPOINTS

LONG = tiny_runs.PROBE.replace("epochs: 4", "epochs: 30, selection: train_holdout, norm: standardize")
TASKS = {"probe": LONG, "starvation": "kind: starvation\nprobes: probe\nsite: peak\n"}


class StopsInEpoch(tiny_runs.Silent):
    """Stops the run in the middle of an epoch, as a signal does."""

    def __init__(self, number):
        self._after = (number - 0.5) * (tiny_runs.TRAIN + tiny_runs.VAL)

    def progress(self, images, total, what):
        if what == "training" and images >= self._after:
            raise Stopped


def command(lab, output):
    return [
        *(sys.executable, "-m", "segbench", "run", "--include", lab, "--model", "tiny", "--tasks", "starvation"),
        *("--output", output, "--device", "cpu", "--no-figures"),
    ]


def test_killed_in_the_middle_of_training_and_run_again_gives_the_same_bytes(tmp_path):
    lab = tiny_runs.lab(tmp_path / "lab", TASKS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    whole = subprocess.Popen(command(lab, tmp_path / "whole"), **quiet)
    killed = subprocess.Popen(command(lab, tmp_path / "killed"), **quiet)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").rglob(CHECKPOINTS)):
        assert killed.poll() is None, "it ended before it wrote a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not list((tmp_path / "killed").rglob("cell.json"))

    again = subprocess.run(
        command(lab, tmp_path / "killed"), env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert whole.wait() == 0
    expected, found = tiny_runs.contents(tmp_path / "whole"), tiny_runs.contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert sum(name.endswith("cell.json") for name in found) == 2


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_stopped_in_any_epoch_and_run_again_gives_the_same_bytes(tmp_path, epoch):
    lab = tiny_runs.lab(tmp_path / "lab", {"probe": tiny_runs.PROBE})
    tiny_runs.measure(lab, "probe", tmp_path / "whole")
    with pytest.raises(Stopped):
        tiny_runs.measure(lab, "probe", tmp_path / "stopped", watcher=StopsInEpoch(epoch))
    checkpoints = list((tmp_path / "stopped").rglob(CHECKPOINTS))
    assert len(checkpoints) == (epoch > 1)
    tiny_runs.measure(lab, "probe", tmp_path / "stopped")
    assert tiny_runs.contents(tmp_path / "stopped") == tiny_runs.contents(tmp_path / "whole")
