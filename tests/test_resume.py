"""A run that was killed, stopped or out of room and started again ends in the bytes of one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_runs
from command import segbench
from killed import PROBE, SITES, differing, epochs, killed, training
from killed import TASKS as POLICIES
from safetensors.torch import load_file, save_file

from segbench.errors import Stopped
from segbench.features import policy
from segbench.features.estimate import Room
from segbench.features.sweep import Sweep
from segbench.store import CHECKPOINTS

LONG = tiny_runs.PROBE.replace("epochs: 4", "epochs: 12, selection: train_holdout, norm: standardize")
TASKS = {
    "probe": f"{LONG}sites: [encoder, llm.1, llm.2]\n",
    "starvation": "kind: starvation\nprobes: probe\nsite: peak\n",
}

ADD = "segbench.features.rows.InMemory.add"
STEP = "torch.optim.AdamW.step"
ADVANCE = "segbench.features.sweep.Sweep._advance"
HEADER = "segbench.features.rows.write_whole"
FSYNC = "os.fsync"


class StopsInEpoch(tiny_runs.Silent):
    """Stops the run in the middle of an epoch, counted over all stages, as a signal does."""

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
    child = subprocess.Popen(command(lab, tmp_path / "killed"), **quiet)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").rglob(CHECKPOINTS)):
        assert child.poll() is None, "it ended before it wrote a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not list((tmp_path / "killed").rglob("cell.json"))

    for output in ("killed", "whole"):
        again = segbench(*command(lab, tmp_path / output)[3:])
        assert again.code == 0, again.err
    expected, found = tiny_runs.contents(tmp_path / "whole"), tiny_runs.contents(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert sum(name.endswith("cell.json") for name in found) == 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A task for each feature policy, and one that leaves the choice open."""
    return tiny_runs.lab(tmp_path_factory.mktemp("resume") / "lab", POLICIES | {"auto": PROBE})


@pytest.fixture(scope="module")
def undisturbed(lab, tmp_path_factory):
    """What a run of each policy leaves that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed")
    with training():
        for name in POLICIES:
            tiny_runs.measure(lab, name, output / name)
    return {name: tiny_runs.contents(output / name) for name in POLICIES}


@pytest.fixture
def advanced(monkeypatch):
    """Every block that all images of a split go through from here on, in order."""
    found, advance = [], Sweep._advance

    def listed(self, split, block, *more):
        found.append(block)
        advance(self, split, block, *more)

    monkeypatch.setattr(Sweep, "_advance", listed)
    return found


ALL = ",".join(SITES)


@pytest.mark.parametrize(
    ("policy", "place", "call", "expected"),
    [
        ("memory", FSYNC, 4, epochs(ALL, first=1)),  # while the second epoch's checkpoint is written
        ("stream", STEP, 6, epochs(ALL, first=2)),
        ("sweep", STEP, 2, epochs(*SITES)),  # in the first layer's training
        ("sweep", ADVANCE, 4, epochs("llm.2")),  # between layers
        ("groups", ADD, 7, epochs(*SITES[1:])),  # while it reads the second group
        ("groups", STEP, 10, epochs(*SITES[1:], first=1)),  # in its training
        ("disk", HEADER, 3, epochs(*SITES)),  # between a file of the first layer and its header
        ("disk", STEP, 10, epochs(*SITES[1:], first=1)),
        ("disk", HEADER, 8, epochs("llm.2")),
    ],
)
def test_killed_anywhere_it_costs_the_current_layer_at_most_and_no_byte(
    lab, undisturbed, tmp_path, advanced, caplog, policy, place, call, expected
):
    killed(lab, policy, tmp_path, place, call)
    with training() as trained:
        (again,) = tiny_runs.measure(lab, policy, tmp_path).values()
    assert again.status == "ran", again.note
    assert trained == expected
    if policy == "disk" and expected[0][0] != "encoder":
        assert set(advanced) == {1}  # the states before it are those that lie in the files
    assert not caplog.records
    assert differing(tmp_path, undisturbed[policy]) == []


def free(patch, count):
    """So many bytes of the host's memory are free."""
    patch.setattr(policy, "room", lambda *_: Room({"host": count}, 10**12))


MUCH, SCARCE = 10**9, 10**6  # for all sites, and for one layer
EVERY = ["encoder", "adapter", "llm.1", "llm.2", "llm.3", "llm.4", "llm.norm"]
REST = ",".join(EVERY[1:])


@pytest.mark.parametrize(
    ("stops", "last", "expected"),
    [
        ([(MUCH, 3)], SCARCE, [(site, 2) for site in EVERY]),  # every site from the checkpoint of all
        ([(MUCH, 3), (SCARCE, 6)], MUCH, [(REST, 2)]),  # those that are left together from there
        ([(SCARCE, 5)], MUCH, epochs(REST)),  # the site that had begun anew, with the others
    ],
)
def test_a_cell_goes_on_under_another_policy_when_other_memory_is_free(
    lab, tmp_path, monkeypatch, undisturbed_auto, stops, last, expected
):
    for count, epoch in stops:
        free(monkeypatch, count)
        with pytest.raises(Stopped):
            tiny_runs.measure(lab, "auto", tmp_path, watcher=StopsInEpoch(epoch))
    free(monkeypatch, last)
    with training(host=0.5) as trained:
        result = tiny_runs.measure(lab, "auto", tmp_path)["auto"].result
    used = json.loads((result.path / "provenance.json").read_text())["features"]["policy"]
    assert (used, trained) == ({MUCH: "memory", SCARCE: "sweep"}[last], expected)
    for name, array in undisturbed_auto.arrays("probes").items():
        np.testing.assert_allclose(result.arrays("probes")[name], array, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(result.measures, undisturbed_auto.measures, strict=True):
        assert (ours.metric, ours.site) == (theirs.metric, theirs.site)
        assert ours.value == pytest.approx(theirs.value, abs=0.1)


@pytest.fixture(scope="module")
def undisturbed_auto(lab, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        free(patch, MUCH)
        return tiny_runs.measure(lab, "auto", tmp_path_factory.mktemp("auto"))["auto"].result


def test_a_probe_that_diverges_among_others_is_the_only_one_that_is_trained_again(tmp_path):
    sites = ["encoder", "llm.1", "llm.1.value", "llm.2"]
    tasks = {"probe": f"{tiny_runs.PROBE}sites: [{', '.join(sites)}]\nfeatures: sweep\n"}
    odd = tiny_runs.lab(tmp_path / "lab", tasks)
    weights = load_file(odd / "models/tiny/model.safetensors")
    for name, factor in (("v_proj", 1e36), ("o_proj", 1e-36)):  # what leaves the block stays as it was
        weights[f"language_model.model.layers.1.self_attn.{name}.weight"] *= factor
    save_file(weights, odd / "models/tiny/model.safetensors", {"format": "pt"})
    told = r"the probe at llm\.1\.value diverged in epoch 1 \(step 0\): its largest logit is \S+e\+3\d; try .*"
    for expected in ({"encoder", "llm.1", "llm.2"}, set()):
        with training() as trained:
            (outcome,) = tiny_runs.measure(odd, "probe", tmp_path / "out").values()
        assert outcome.status == "failed"
        assert re.fullmatch(told, outcome.note)
        assert {site for site, _ in trained} == expected | {"llm.1.value"}
        done = {path.name for path in (tmp_path / "out").rglob("checkpoint-done-*")}
        assert done == {f"checkpoint-done-{site}.safetensors" for site in sites if site != "llm.1.value"}
