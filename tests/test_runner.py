import dataclasses
import json

import pytest
import tiny_runs
import torch
from PIL import Image
from safetensors.torch import save_file

from segbench import planning, runner
from segbench.errors import SpecError
from segbench.library import Library
from segbench.planning import Options
from segbench.store import Store

PLANNED = Options(device="cpu")
TWO_IMAGES = Options(device="cpu", limit=2, examples=0)
CARD = "adapter: llava\nweights: ./tiny\n"


def plan(folder, output, tasks="all", options=PLANNED):
    """The cells of the lab by task, models and tasks of the package left out."""
    library = Library([folder])
    chosen = library.tasks(tasks if tasks != "all" else ",".join(sorted(p.stem for p in folder.glob("tasks/*.yaml"))))
    return {
        item.task.name: item for item in planning.plan(library, library.models("tiny"), chosen, Store(output), options)
    }


@pytest.fixture
def lab(tmp_path):
    """A lab that a test may write into; its model is only ever planned with."""
    for name in ("models/tiny", "tasks"):
        (tmp_path / "lab" / name).mkdir(parents=True)
    write(tmp_path / "lab", "models/tiny.yaml", CARD)
    write(tmp_path / "lab", "models/tiny/config.json", json.dumps({"model_type": "llava"}))
    save_file({"w": torch.zeros(2)}, tmp_path / "lab/models/tiny/model.safetensors")
    write(tmp_path / "lab", "tasks/probe.yaml", tiny_runs.PROBE)
    write(tmp_path / "lab", "tasks/starvation.yaml", "kind: starvation\nprobes: probe\n")
    return tmp_path / "lab"


def write(lab, name, text):
    (lab / name).write_text(text)


def fingerprints(lab, options=PLANNED):
    planned = plan(lab, lab.parent / "out", options=options)
    assert not [item.problem for item in planned.values() if item.problem]
    return {name: item.cell.fingerprint for name, item in planned.items()}


CHANGES = {
    "protocol": lambda lab: write(lab, "tasks/probe.yaml", tiny_runs.PROBE.replace("3e-2", "4e-2")),
    "data": lambda lab: write(lab, "tasks/probe.yaml", tiny_runs.PROBE.replace("seed: 5", "seed: 6")),
    "dtype": lambda lab: write(lab, "models/tiny.yaml", CARD + "dtype: bfloat16\n"),
    "prompt": lambda lab: write(lab, "models/tiny.yaml", CARD + "prompt: <image> a\n"),
    "attention": lambda lab: write(lab, "models/tiny.yaml", CARD + "attention: bidirectional\n"),
    "weights": lambda lab: save_file({"w": torch.ones(2)}, lab / "models/tiny/model.safetensors"),
    "settings": lambda lab: write(lab, "models/tiny/config.json", json.dumps({"model_type": "llava", "x": 1})),
}
SAME = {
    "description": lambda lab: write(
        lab, "tasks/probe.yaml", tiny_runs.PROBE + "description: other words\ngroups: [g]\n"
    ),
    "card": lambda lab: write(lab, "models/tiny.yaml", CARD + "license: x\nbaseline: y\n"),
    "defaults": lambda lab: write(lab, "models/tiny.yaml", CARD + "attention: causal\n"),
    "place": lambda lab: (
        (lab / "models/tiny").rename(lab / "models/moved"),
        write(lab, "models/tiny.yaml", "adapter: llava\nweights: ./moved\n"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_can_change_a_number_makes_another_fingerprint_of_every_cell_that_reads_it(lab, change):
    before = fingerprints(lab)
    CHANGES[change](lab)
    after = fingerprints(lab)
    assert all(after[name] != before[name] for name in before)


def test_a_task_that_others_do_not_read_changes_only_itself(lab):
    before = fingerprints(lab)
    write(lab, "tasks/starvation.yaml", "kind: starvation\nprobes: probe\nsite: llm.1\n")
    after = fingerprints(lab)
    assert after["probe"] == before["probe"]
    assert after["starvation"] != before["starvation"]


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_number_keeps_the_fingerprints(lab, change):
    before = fingerprints(lab)
    SAME[change](lab)
    assert fingerprints(lab) == before


def test_a_pixel_of_a_mask_makes_another_fingerprint(lab):
    for name in ("images", "masks"):
        (lab / "own" / name).mkdir(parents=True)
    for stem in ("a", "b"):
        Image.new("RGB", (4, 4)).save(lab / f"own/images/{stem}.png")
        Image.new("L", (4, 4)).save(lab / f"own/masks/{stem}.png")
    write(lab, "own/classes.json", '["x", "y"]')
    write(lab, "own/splits.json", '{"train": ["a"], "val": ["b"]}')
    write(lab, "tasks/own.yaml", "kind: probe\ndata: {name: folder, path: ../own}\n")
    before = fingerprints(lab)
    mask = Image.new("L", (4, 4))
    mask.putpixel((2, 3), 1)
    mask.save(lab / "own/masks/b.png")
    after = fingerprints(lab)
    assert after["own"] != before["own"]
    assert after["probe"] == before["probe"]


def test_limit_and_seed_are_part_of_the_fingerprint_and_batch_size_is_not(lab):
    plain = fingerprints(lab)
    assert fingerprints(lab, Options(device="cpu", batch_size=7, examples=0)) == plain
    for options in (Options(device="cpu", limit=2), Options(device="cpu", seeds=(1,))):
        assert all(one != plain[name] for name, one in fingerprints(lab, options).items())


def test_every_seed_is_a_cell(lab):
    library = Library([lab])
    options = Options(device="cpu", seeds=(0, 1, 2))
    items = planning.plan(library, library.models("tiny"), library.tasks("starvation"), Store(lab.parent), options)
    assert [(item.task.name, item.seed) for item in items] == [
        (t, s) for s in range(3) for t in ("probe", "starvation")
    ]
    assert len({item.cell.fingerprint for item in items}) == 6


def test_a_task_says_how_often_it_is_measured_unless_the_user_does(lab, tmp_path):
    write(lab, "tasks/often.yaml", tiny_runs.PROBE + "seeds: 3\n")
    write(lab, "tasks/rarely.yaml", "kind: starvation\nprobes: often\nseeds: 2\n")

    def seeds(tasks, options):
        library = Library([lab])
        items = planning.plan(library, library.models("tiny"), library.tasks(tasks), Store(tmp_path), options)
        return [(item.task.name, item.seed) for item in items]

    assert seeds("often", PLANNED) == [("often", seed) for seed in range(3)]
    # what is read is measured as often as it is needed, and as often as it says where it was asked for
    twice = [(name, seed) for seed in range(2) for name in ("often", "rarely")]
    assert seeds("rarely", PLANNED) == twice
    assert seeds("rarely,often", PLANNED) == [*twice, ("often", 2)]
    assert seeds("often", Options(device="cpu", seeds=(7,))) == [("often", 7)]
    once = Options(device="cpu", seeds=(0,))
    often = plan(lab, tmp_path, "often", once)["often"].cell.fingerprint
    write(lab, "tasks/often.yaml", tiny_runs.PROBE)
    assert plan(lab, tmp_path, "often", once)["often"].cell.fingerprint == often  # how often changes no number


def test_a_task_brings_those_it_reads_before_itself(lab, tmp_path):
    planned = plan(lab, tmp_path, tasks="starvation")
    assert [(name, item.needed_by) for name, item in planned.items()] == [("probe", "starvation"), ("starvation", None)]


def test_missing_weights_and_data_are_told_and_block_what_stands_on_them(lab, tmp_path):
    write(lab, "tasks/absent.yaml", "kind: probe\ndata: {name: folder, path: ./none}\n")
    write(lab, "tasks/above.yaml", "kind: starvation\nprobes: absent\n")
    planned = plan(lab, tmp_path)
    assert planned["probe"].problem is None
    assert planned["absent"].problem.status == "missing"
    assert str(lab / "tasks/none") in planned["absent"].problem.note
    assert planned["above"].problem.note == "needs absent, which is missing"
    (lab / "models/tiny/config.json").unlink()
    for name, item in plan(lab, tmp_path, tasks="probe").items():
        assert item.problem.status == "missing", name
        assert "put a transformers checkpoint (safetensors) there" in item.problem.note


def test_tasks_that_need_each_other_or_nobody_knows_are_refused(lab, tmp_path):
    write(lab, "tasks/one.yaml", "kind: starvation\nprobes: two\n")
    write(lab, "tasks/two.yaml", "kind: starvation\nprobes: one\n")
    with pytest.raises(SpecError, match="tasks need each other: one -> two -> one"):
        plan(lab, tmp_path, tasks="one")
    write(lab, "tasks/one.yaml", "kind: starvation\nprobes: prob\n")
    with pytest.raises(SpecError, match=r"one needs the task 'prob': no task 'prob', did you mean 'probe'\?"):
        plan(lab, tmp_path, tasks="one")


def test_a_group_is_no_task_that_another_could_need(lab, tmp_path):
    write(lab, "tasks/one.yaml", "kind: starvation\nprobes: group\n")
    write(lab, "tasks/probe.yaml", tiny_runs.PROBE + "groups: [group]\n")
    with pytest.raises(SpecError, match="no task 'group'"):
        plan(lab, tmp_path, tasks="one")


def test_a_kind_or_a_data_set_that_breaks_fails_alone_with_its_trace(tiny_lab, tmp_path, monkeypatch):
    (tmp_path / "lab_broken").mkdir()
    head = "from segbench.specs import Spec\nclass Params(Spec):\n    pass\n"
    (tmp_path / "lab_broken/kind.py").write_text(
        head + "def requires(params):\n    return ()\ndef run(job):\n    yield 1 / 0\n"
    )
    (tmp_path / "lab_broken/data.py").write_text(head + "def load(params, split):\n    return {}['gone']\n")
    tasks = {"bad-kind": "kind: lab_broken.kind\n", "bad-data": "kind: probe\ndata: lab_broken.data\n"}
    for name, text in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    library = Library([tiny_lab, tmp_path])
    chosen = library.tasks("bad-data,bad-kind,probe")
    items = planning.plan(
        library, library.models("tiny"), chosen, Store(tmp_path / "out"), Options(device="cpu", limit=2)
    )
    outcomes = {
        one.item.task.name: one for one in runner.run(items, Options(device="cpu", limit=2), tiny_runs.Silent())
    }
    assert {name: one.status for name, one in outcomes.items()} == {
        "bad-data": "failed",
        "bad-kind": "failed",
        "probe": "ran",
    }
    assert outcomes["bad-data"].note == "KeyError: 'gone'"
    assert "lab_broken/data.py" in outcomes["bad-data"].trace
    assert outcomes["bad-kind"].note == "ZeroDivisionError: division by zero"
    assert "lab_broken/kind.py" in (outcomes["bad-kind"].item.cell.path / "failure.txt").read_text()


def test_a_cell_that_another_process_holds_is_left_alone(lab, tmp_path):
    item = plan(lab, tmp_path, tasks="probe")["probe"]
    with item.cell.lock() as mine:
        assert mine
        (outcome,) = runner.run([item], PLANNED, tiny_runs.Silent())
    assert (outcome.status, outcome.note) == (
        "busy",
        "another process is measuring it; run again when that has finished",
    )


def test_a_damaged_cell_is_measured_again_to_the_same_bytes(tiny_lab, tmp_path, caplog):
    (first,) = tiny_runs.measure(tiny_lab, "probe", tmp_path, TWO_IMAGES).values()
    whole = tiny_runs.contents(tmp_path)
    counts = first.result.path / "counts.safetensors"
    damaged = bytearray(counts.read_bytes())
    damaged[-1] ^= 1
    counts.write_bytes(damaged)
    (again,) = tiny_runs.measure(tiny_lab, "probe", tmp_path, TWO_IMAGES).values()
    assert again.status == "ran"
    assert f"{counts} does not match its sha256 in the finished cell" in caplog.text
    assert {name: data for name, data in tiny_runs.contents(tmp_path).items() if ".damaged" not in name} == whole


def test_a_finished_cell_with_fewer_examples_than_wanted_is_measured_again(tiny_lab, tmp_path):
    few, more = (Options(device="cpu", limit=2, examples=count) for count in (0, 1))
    tiny_runs.measure(tiny_lab, "probe", tmp_path, few)
    (item,) = plan(tiny_lab, tmp_path, tasks="probe", options=few).values()
    assert runner.kept(item, few)
    assert not runner.kept(item, more)


def test_a_cell_whose_provenance_cannot_be_told_is_not_finished(tiny_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.platform, "platform", lambda: 1 / 0)
    for _ in range(2):
        (outcome,) = tiny_runs.measure(tiny_lab, "probe", tmp_path, TWO_IMAGES).values()
        assert outcome.status == "failed"
        assert "ZeroDivisionError" in outcome.note


def test_the_latest_of_several_fingerprints_counts_unless_another_was_just_asked_for(tiny_lab, tmp_path):
    ends = {
        seed: tiny_runs.measure(tiny_lab, "probe", tmp_path, Options(device="cpu", limit=2, seeds=(seed,), examples=0))
        for seed in (0, 1)
    }
    results = [one["probe"].result for one in ends.values()]
    assert runner.latest(results) == results  # different seeds are different cells
    older, newer = (dataclasses.replace(one, seed=0) for one in results)
    assert runner.latest([newer, older]) == [newer]
    assert runner.latest([newer, older], current={older.fingerprint}) == [older]
    part = dataclasses.replace(newer, about=newer.about | {"partial": {"val": {"images": 2, "published": 9}}})
    assert runner.latest([part, older]) == [older, part]  # less data is no newer measurement of the same


def test_a_device_that_is_not_there_is_refused_by_name():
    assert planning.device("cpu") == "cpu"
    for name in ("abacus", "cpu:x", "cuda:99"):
        with pytest.raises(SpecError, match=f"--device: '{name}' cannot be used here"):
            planning.device(name)
