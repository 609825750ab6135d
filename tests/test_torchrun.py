"""`torchrun -m segbench run`: the cells of one process, whoever does what, and whoever fails or is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import ranks
import tiny_runs

from segbench.store import CHECKPOINTS, Store

POLICIES = ("memory", "stream", "sweep", "disk", "groups")
CONTROLS = "shuffled: true\nposition: true\nat_model: true\n"
READERS = {
    "starvation": "kind: starvation\nprobes: probe-memory\n",
    "knockout": "kind: knockout\nprobes: probe-memory\nleast: 2\n",
}
BROKEN = """
import os
from segbench.errors import DataError
from segbench.data import scenes
from segbench.data.scenes import Params

class Broken:
    def __init__(self, whole, split):
        self.__dict__.update(vars(whole))
        self.whole, self.split = whole, split
    def __len__(self):
        return len(self.whole)
    def __getitem__(self, index):
        if self.split == "train" and index == 6 and os.environ.get("RANK") == "1":
            raise DataError("train 6: a broken file")
        return self.whole[index]
    def __getattr__(self, name):
        return getattr(self.whole, name)

def load(params, split):
    return Broken(scenes.load(params, split), split)
"""

BY_RANK = """
import os, runpy, sys
sys.argv = [word.replace("RANK", os.environ["RANK"]) for word in sys.argv]
runpy.run_module("segbench", run_name="__main__", alter_sys=True)
"""


def command(lab, output, tasks, *more, model="tiny"):
    return [
        *("-m", "segbench", "run", "--include", lab, "--model", model, "--tasks", tasks, "--output", output),
        *("--device", "cpu", "--batch-size", "2", "--no-figures", "--json", *more),
    ]


def ended(count, *words):
    """What the first process printed; all must have ended well."""
    found = ranks.finished(ranks.start(count, *words))
    assert [code for code, _, _ in found] == [0] * count, found
    return json.loads(found[0][1]), found


def results(output):
    return {result.task: result for result in Store(output).results()}


def test_two_processes_with_unequal_parts_measure_what_one_does(tmp_path):
    uneven = tiny_runs.PROBE.replace("train: 8, val: 4", "train: 9, val: 5").replace("epochs: 4", "epochs: 2")
    assert uneven.count("train: 9") == uneven.count("epochs: 2") == 1
    tasks = {f"probe-{policy}": f"{uneven}features: {policy}\n" for policy in POLICIES}
    tasks["probe-memory"] += CONTROLS
    tasks["probe-sweep"] = tasks["probe-sweep"].replace("lr:", "norm: standardize, selection: train_holdout, lr:")
    lab = tiny_runs.lab(tmp_path / "lab", tasks | READERS)
    tiny_runs.measure(lab, ",".join(tasks | READERS), tmp_path / "alone")
    rows, found = ended(2, *command(lab, tmp_path / "team", ",".join(tasks | READERS)))
    assert {row["status"] for row in rows} == {"ran"}
    assert "2 processes, each with a part of the images" in found[0][2]
    assert [out for _, out, _ in found[1:]] == [""]
    alone, team = results(tmp_path / "alone"), results(tmp_path / "team")
    assert team.keys() == alone.keys() == tasks.keys() | READERS.keys()
    for task, one in alone.items():
        ours = team[task]
        assert ours.fingerprint == one.fingerprint
        assert ours.about == one.about
        for a, b in zip(one.measures, ours.measures, strict=True):
            assert (a.metric, a.site, a.key, a.count) == (b.metric, b.site, b.key, b.count)
            assert b.value == pytest.approx(a.value, abs=1e-3)
        for name in ("counts", "confusion", "positions", "patches", "examples", "probes"):
            if not (one.path / f"{name}.safetensors").exists():
                continue
            theirs = one.arrays(name)
            for key, array in ours.arrays(name).items():
                if array.dtype.kind == "f":
                    np.testing.assert_allclose(array, theirs[key], rtol=1e-4, atol=1e-5)
                else:
                    np.testing.assert_array_equal(array, theirs[key])
    told = json.loads((team["probe-sweep"].path / "provenance.json").read_text())
    assert told["processes"] == 2
    assert told["features"]["policy"] == "sweep"
    assert not list((tmp_path / "team").rglob("features*"))


def test_several_models_are_shared_out_whole_and_give_the_same_bytes(tmp_path):
    lab = tiny_runs.lab(tmp_path / "lab", {"probe": tiny_runs.PROBE} | {"star": "kind: starvation\nprobes: probe\n"})
    (lab / "models/padded.yaml").write_text("adapter: llava\nweights: ./tiny\npreprocess: pad\n")
    words = command(lab, tmp_path / "team", "star", model="tiny,padded")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ranks.TESTS), str(ranks.TESTS.parent)])}
    done = subprocess.run(
        [*torchrun, *map(str, words)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes, each with models of its own" in done.stderr
    for line in ("process 0 [2/2] tiny star: ran", "process 1 [2/2] padded star: ran"):
        assert line in done.stderr
    rows = json.loads(done.stdout)
    assert [(row["model"], row["task"], row["status"]) for row in rows] == [
        *(("tiny", "probe", "ran"), ("tiny", "star", "ran"), ("padded", "probe", "ran"), ("padded", "star", "ran"))
    ]
    tiny_runs.measure(lab, "star", tmp_path / "alone", replace(tiny_runs.OPTIONS, batch_size=2))
    ours, theirs = (tiny_runs.contents(tmp_path / name / "tiny") for name in ("team", "alone"))
    assert ours == theirs
    assert (tmp_path / "team/leaderboard.md").read_text().count("| padded ") >= 2


def test_when_one_process_is_killed_the_others_end_and_one_alone_goes_on(tmp_path):
    task = {"probe": tiny_runs.PROBE.replace("epochs: 4", "epochs: 40")}
    lab = tiny_runs.lab(tmp_path / "lab", task)
    team = ranks.start(2, *command(lab, tmp_path / "team", "probe"))
    deadline = time.monotonic() + 300
    while not list((tmp_path / "team").rglob(CHECKPOINTS)):
        assert team[0].poll() is None, team[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    team[1].send_signal(signal.SIGKILL)
    (first, _, said), (second, _, _) = ranks.finished(team)
    assert (first, second) == (4, -signal.SIGKILL)
    assert "another process of this run is gone" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "team").rglob("cell.json"))
    checkpoint = next((tmp_path / "team").rglob(CHECKPOINTS)).stat()

    begun = time.time()
    outcome = tiny_runs.measure(lab, "probe", tmp_path / "team")["probe"]
    assert checkpoint.st_mtime < begun
    whole = tiny_runs.measure(lab, "probe", tmp_path / "whole")["probe"]
    assert (outcome.status, whole.status) == ("ran", "ran")
    for name, array in whole.result.arrays("probes").items():
        np.testing.assert_allclose(outcome.result.arrays("probes")[name], array, rtol=1e-3, atol=1e-4)


def test_what_fails_in_one_process_fails_the_cell_in_all_and_the_next_one_runs(tmp_path):
    broken = tiny_runs.PROBE.replace("name: scenes", "name: mine.broken")
    wild = tiny_runs.PROBE.replace("lr: 3e-2", "lr: 3e38")
    lab = tiny_runs.lab(tmp_path / "lab", {"a-broken": broken, "b-wild": wild, "probe": tiny_runs.PROBE})
    (lab / "mine").mkdir()
    (lab / "mine/broken.py").write_text(BROKEN)
    found = ranks.finished(ranks.start(2, *command(lab, tmp_path / "team", "a-broken,b-wild,probe")))
    assert [code for code, _, _ in found] == [4, 0], found
    rows = {row["task"]: row for row in json.loads(found[0][1])}
    assert {task: row["status"] for task, row in rows.items()} == {
        "a-broken": "failed",
        "b-wild": "failed",
        "probe": "ran",
    }
    assert rows["a-broken"]["note"] == "process 1: train 6: a broken file"
    assert "diverged" in rows["b-wild"]["note"]
    assert not rows["b-wild"]["note"].startswith("process")


def test_processes_that_see_different_cells_do_not_begin(tmp_path):
    for rank in range(2):
        tiny_runs.lab(tmp_path / f"lab{rank}", {"probe": tiny_runs.PROBE.replace("seed: 5", f"seed: {5 + rank}")})
    _, _, *words = command(tmp_path / "labRANK", tmp_path / "team", "probe")
    found = ranks.finished(ranks.start(2, "-c", BY_RANK, *words))
    assert [exit_code for exit_code, _, _ in found] == [2, 2], found
    assert "the processes plan different cells" in found[0][2]


def test_a_mistake_that_one_process_finds_is_told_by_the_others(tmp_path):
    tiny_runs.lab(tmp_path / "lab0", {"probe": tiny_runs.PROBE.replace("seed: 5", "seed: 0")})
    tiny_runs.lab(tmp_path / "lab1", {"probe": tiny_runs.PROBE})
    _, _, *words = command(tmp_path / "labRANK", tmp_path / "team", "probe")
    (first, _, said), (second, _, heard) = ranks.finished(ranks.start(2, "-c", BY_RANK, *words))
    assert (first, second) == (2, 4)
    assert "data.seed: must be greater than or equal to 1" in said
    assert heard.startswith("error: process 0: ")
    assert "data.seed: must be greater than or equal to 1" in heard
