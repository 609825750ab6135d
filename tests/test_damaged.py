"""Files that are damaged and disks that fill: what is lost is told and made anew, and the bytes are the same."""

import os
import re
import resource
import shutil

import numpy as np
import pytest
import tiny_runs
import torch
from command import segbench, tiny_run
from killed import TASKS, differing, epochs, killed, training

from segbench.cli.say import INCOMPLETE
from segbench.errors import CellError
from segbench.features.rows import OnDisk
from segbench.features.sweep import Sweep
from segbench.files import TEMPORARY
from segbench.probes import Trainer
from segbench.store import Cell, Store

LITTLE = 15_000  # bytes: less than a checkpoint, the states of a split, or an array of a cell
ALL = "encoder,llm.1,llm.2"
STEP = "torch.optim.AdamW.step"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return tiny_runs.lab(tmp_path_factory.mktemp("damaged") / "lab", {name: TASKS[name] for name in ("memory", "disk")})


@pytest.fixture(scope="module")
def finished(lab, tmp_path_factory):
    """Folder and contents of a finished run of each task."""
    output = tmp_path_factory.mktemp("finished")
    with training():
        for name in ("memory", "disk"):
            tiny_runs.measure(lab, name, output / name)
    return {name: (output / name, tiny_runs.contents(output / name)) for name in ("memory", "disk")}


@pytest.fixture(scope="module")
def unfinished(lab, tmp_path_factory):
    """A run of each task that was killed in its second epoch, or in the last one of the last layer."""
    output = tmp_path_factory.mktemp("unfinished")
    for name, step in (("memory", 4), ("disk", 18)):
        killed(lab, name, output / name, STEP, step)
    return output


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def moved(data):
    return data.replace(b'"places":[[0,', b'"places":[[4,')


def cut(data):
    return data[:-1]


def run_again(lab, output, task, caplog):
    """The sites and epochs that are trained when a damaged run is started again, and what it warns of."""
    with training() as trained:
        (outcome,) = tiny_runs.measure(lab, task, output).values()
    assert outcome.status == "ran", outcome.note
    told, _ = caplog.text, caplog.clear()
    return trained, told


@pytest.mark.parametrize("name", ["cell.json", "probes.safetensors"])
def test_a_finished_cell_is_measured_again_when_a_file_of_it_is_damaged_and_each_damage_is_kept(
    lab, finished, tmp_path, caplog, name
):
    whole, expected = finished["memory"]
    output = shutil.copytree(whole, tmp_path / "out")
    (path,) = output.rglob(name)
    for suffix in ("", "-2"):
        path.write_bytes(damaged := flipped(path.read_bytes()))
        trained, told = run_again(lab, output, "memory", caplog)
        assert trained == epochs(ALL)
        assert f"it is set aside as {name}.damaged{suffix}" in told
        assert "the cell is measured again" in told
        assert path.with_name(f"{name}.damaged{suffix}").read_bytes() == damaged
        assert differing(output, expected) == []
    assert path.with_name(f"{name}.damaged").exists()


@pytest.mark.parametrize(
    ("task", "name", "damage", "expected"),
    [
        ("memory", "checkpoint.safetensors", flipped, epochs(ALL)),
        ("disk", "checkpoint-llm.2.safetensors", cut, epochs("llm.2")),
        ("disk", "checkpoint-done-llm.1.safetensors", flipped, [("llm.2", 2)]),  # its own last epoch is there
        ("disk", "features/train-llm.2.raw", flipped, [("llm.2", 2)]),
        ("disk", "features/val-llm.2.raw", cut, [("llm.2", 2)]),
        ("disk", "features/train-llm.2.raw.json", moved, [("llm.2", 2)]),
        ("disk", "features/val-llm.2.raw.json", cut, [("llm.2", 2)]),
    ],
)
def test_what_an_unfinished_cell_kept_is_set_aside_where_it_is_damaged_and_made_anew(
    lab, finished, unfinished, tmp_path, caplog, task, name, damage, expected
):
    output = shutil.copytree(unfinished / task, tmp_path / "out")
    (cell,) = output.glob("tiny/*/*")
    whole = (cell / name).read_bytes()
    assert damage(whole) != whole
    (cell / name).write_bytes(damage(whole))
    trained, told = run_again(lab, output, task, caplog)
    assert trained == expected
    assert f"{cell / name} " in told
    aside = cell / f"{(cell / name).name}.damaged"
    assert f"it is set aside as {aside.name}" in told
    assert aside.read_bytes() == damage(whole)
    assert differing(output, finished[task][1]) == []


@pytest.fixture
def room():
    """Called with a number of bytes, no file may grow beyond it; called with None, it may again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if most is None else most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITTEN = r"no room \(File too large\): [\d.]+ kB are to be written"
STATES = r"features at train-llm\.2: \d of 8 images were written, [\d.]+ kB are missing"
FINISHED = ["checkpoint-done-encoder.safetensors", "checkpoint-done-llm.1.safetensors"]
TOGETHER = ["checkpoint.safetensors"]


@pytest.mark.parametrize(
    ("task", "owner", "method", "call", "told", "left", "expected"),
    [
        ("disk", Sweep, "_advance", 3, STATES, FINISHED, epochs("llm.2")),
        ("memory", Trainer, "epoch", 2, rf"checkpoint\.safetensors: {WRITTEN}", TOGETHER, epochs(ALL, first=1)),
        ("memory", Cell, "save_arrays", 1, rf"probes\.safetensors: {WRITTEN}", TOGETHER, []),
    ],
)
def test_a_disk_that_fills_stops_the_cell_and_with_room_it_goes_on(
    lab, finished, tmp_path, monkeypatch, caplog, room, task, owner, method, call, told, left, expected
):
    calls, original = [], vars(owner)[method]

    def filling(*given):
        calls.append(given)
        if len(calls) == call:
            room(LITTLE)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, filling)
        stopped = segbench("run", *tiny_run(lab, tmp_path), "--tasks", task)
    room(None)
    assert stopped.code == INCOMPLETE
    assert re.search(
        rf"failed: tiny {task}: .*{told} and [\d.]+ [kMGT]B are free; make room and give the same command", stopped.err
    )
    assert "Traceback" not in stopped.err
    (cell,) = tmp_path.glob("tiny/*/*")
    assert {*left} <= {path.name for path in cell.iterdir()}
    trained, _ = run_again(lab, tmp_path, task, caplog)
    assert trained == expected
    assert differing(tmp_path, finished[task][1]) == []


@pytest.mark.parametrize("write", ["features", "store"])
def test_a_device_without_space_is_told_by_the_file_that_it_lacks_room_for(tmp_path, write):
    if write == "features":
        rows = OnDisk(tmp_path / "train-llm.2.raw", 3)
        (tmp_path / f"{TEMPORARY}train-llm.2.raw").symlink_to("/dev/full")
        told = r"for the features at train-llm\.2: 0 of 3 images were written, 120 bytes are missing"
        with pytest.raises(CellError, match=rf"no room \(No space left on device\) {told}"):
            rows.add(torch.zeros(2, 2, 5))
    else:
        cell = Store(tmp_path).cell("m", "t", "0" * 64)
        cell.path.mkdir(parents=True)
        (cell.path / f"{TEMPORARY}{os.getpid()}-counts.safetensors").symlink_to("/dev/full")
        with pytest.raises(CellError, match=r"counts\.safetensors: no room \(No space left on device\): 2\d\d bytes"):
            cell.save_arrays("counts", {"a": np.zeros(3)})
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
