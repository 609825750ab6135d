import json
import os
import re
import signal
import subprocess
import sys

import original_llava
import pytest
from command import segbench, tiny_run

from segbench import progress, strict_yaml
from segbench.specs import ModelSpec

QUICK = (["--help"], ["run", "--help"], ["list", "models"], ["list", "tasks"], ["list", "data"], ["show", "model", "X"])
QUICK += (["show", "task", "probe-scenes"], ["show", "task", "knockout-scenes", "--json"], ["--version"])
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "datasets", "lmms_eval", "torchvision")


def test_help_list_and_show_import_nothing_heavy():
    code = f"""
import sys
from segbench.cli import main
for words in {QUICK}:
    sys.argv = ["segbench", *words]
    try:
        main()
    except SystemExit:
        pass
    heavy = [name for name in {HEAVY} if name in sys.modules]
    if heavy:
        raise SystemExit(f"{{words}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "probe-scenes" in done.stdout


def test_data_goes_to_stdout_and_messages_to_stderr(tiny_lab):
    listed = segbench("list", "tasks", "--include", tiny_lab, "--json")
    assert {"probe", "probe-scenes"} <= {row["name"] for row in json.loads(listed.out)}
    assert (listed.code, listed.err) == (0, "")
    wrong = segbench("show", "task", "prob-scenes")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no task 'prob-scenes', did you mean 'probe-scenes'?" in wrong.err


@pytest.mark.parametrize(("what", "name"), [("model", "tiny-clip-bidir"), ("task", "probe-scenes")])
def test_what_show_prints_is_yaml_that_means_the_same(what, name):
    resolved = json.loads(segbench("show", what, name, "--json").out)
    assert strict_yaml.parse(segbench("show", what, name).out, "shown").value == resolved


def test_list_data_names_the_keys_of_every_data_set():
    rows = {row["name"]: row for row in json.loads(segbench("list", "data", "--json").out)}
    assert "path" in rows["folder"]["keys"]
    assert "seed" in rows["scenes"]["keys"]


def test_every_mistake_of_every_chosen_spec_is_told_at_once_before_a_model_is_loaded(tmp_path):
    (tmp_path / "m.yaml").write_text("adapter: lava\nweights: ./w\natention: causal\n")
    (tmp_path / "a.yaml").write_text(
        "kind: probe\ndata: {name: scenes, train: 0}\nprotocol:\n  epoch: 3\n  batch: no\n"
    )
    (tmp_path / "b.yaml").write_text("kind: prob\ngroups: yes\n")
    said = segbench("run", "--include", tmp_path, "--model", "m", "--tasks", "a,b", "--output", tmp_path / "out")
    assert said.code == 2
    for place, what in [
        ("m.yaml:1: adapter", "did you mean 'llava'?"),
        ("m.yaml:3", "unknown key 'atention', did you mean 'attention'?"),
        ("a.yaml:2: data.train", "greater than or equal to 1"),
        ("a.yaml:4: protocol", "unknown key 'epoch', did you mean 'epochs'?"),
        ("a.yaml:5: protocol.batch", "expected a whole number, got 'no'"),
        ("b.yaml:1: kind", "did you mean 'probe'?"),
        ("b.yaml:2: groups", "expected a list, got 'yes'"),
    ]:
        assert any(place in line and what in line for line in said.err.splitlines()), (place, what, said.err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "1,x"], "--seed: expected whole numbers"),
        (["--model-args", "dtype"], "expected key=value"),
        (["--model-args", "dtipe=float32"], "unknown key 'dtipe', did you mean 'dtype'?"),
        (["--device", "abacus"], "--device: 'abacus' cannot be used here"),
        (["--limit", "0"], "--limit"),
        (["--preprocess", "squish"], "preprocess: 'squish' is not one of"),
        (["--weights", "no-such-folder"], "'no-such-folder' does not exist"),
        (["--preprocess", "native", "--model-args", "preprocess=squash"], "--preprocess and --model-args preprocess="),
        (["--tasks", "nothing"], "no task 'nothing'"),
        (["--batch-sise", "3"], "--batch-size"),
    ],
)
def test_wrong_options_are_told_by_name_and_exit_2(tiny_lab, tmp_path, words, told):
    tasks = () if "--tasks" in words else ("--tasks", "probe")
    said = segbench("run", *tiny_run(tiny_lab, tmp_path), *tasks, *words)
    assert said.code == 2
    assert told in said.err
    assert "Traceback" not in said.err


def test_a_run_ends_with_a_summary_the_files_and_the_table(first_run):
    output, said = first_run
    assert said.code == 0, said.err
    assert re.search(r"^\| tiny +\| causal", said.out, re.MULTILINE)
    for line in ("[1/2] tiny probe: ran in", "[2/2] tiny starvation: ran in", f"results:  {output}", "leaderboard.md"):
        assert line in said.err
    assert (output / "leaderboard.md").exists()


def test_a_second_run_finds_everything_done_and_loads_no_model(first_run, tiny_lab, monkeypatch):
    output, first = first_run
    before = {path: path.stat().st_mtime_ns for path in output.rglob("cell.json")}
    monkeypatch.setattr("segbench.adapters.base.load", None)
    again = segbench("run", *tiny_run(tiny_lab, output), "--tasks", "probe,starvation")
    assert again.code == 0, again.err
    assert again.out == first.out
    assert "[1/2] tiny probe: done" in again.err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("cell.json")} == before


def test_tasks_without_their_data_are_told_with_the_remedy_and_exit_4(first_run, tiny_lab):
    output, first = first_run
    said = segbench("run", *tiny_run(tiny_lab, output), "--tasks", "probe,absent-starvation")
    assert said.code == 4
    assert "tiny probe: done" in said.err
    assert (
        f"missing: tiny absent: {tiny_lab}/tasks/no-such-folder: there is no such folder; expected one with" in said.err
    )
    assert "blocked: tiny absent-starvation: needs absent, which is missing" in said.err
    assert said.out == first.out


def test_a_dry_run_tells_state_and_cost_of_every_cell_and_writes_nothing(first_run, tiny_lab, tmp_path):
    output, _ = first_run
    tasks = ("--tasks", "starvation,absent", "--dry-run", "--json")
    said = segbench("run", *tiny_run(tiny_lab, output), *tasks)
    states = {row["task"]: row["status"] for row in json.loads(said.out)}
    assert (said.code, states) == (4, {"probe": "done", "starvation": "done", "absent": "missing"})
    fresh = segbench("run", *tiny_run(tiny_lab, tmp_path / "new"), "--tasks", "starvation", "--dry_run")
    assert fresh.code == 0
    assert re.search(r"tiny +probe +0 +would run +8 train images, 4 val images", fresh.out)
    assert not (tmp_path / "new").exists()


def test_a_kind_of_the_users_own_has_its_measures_listed(tiny_lab, tmp_path):
    (tmp_path / "lab_own").mkdir()
    (tmp_path / "lab_own/depth.py").write_text(
        "from segbench.specs import Spec\nfrom segbench.types import Measure\nclass Params(Spec):\n    pass\n"
        "def requires(params):\n    return ()\n"
        "def run(job):\n    yield Measure('depth', job.adapter.depth, 'count', 1)\n"
    )
    (tmp_path / "depth.yaml").write_text("kind: lab_own.depth\n")
    (tmp_path / "broken.yaml").write_text("kind: probe\ndata: lab_own.data\n")
    (tmp_path / "lab_own/data.py").write_text(
        "from segbench.specs import Spec\nclass Params(Spec):\n    pass\ndef load(params, split):\n    1 / 0\n"
    )
    run = ("run", *tiny_run(tiny_lab, tmp_path / "out"), "--include", tmp_path, "--tasks")
    said = segbench(*run, "depth")
    assert said.code == 0, said.err
    assert [line.split() for line in said.out.splitlines()] == [
        ["model", "task", "seed", "metric", "value", "unit"],
        ["tiny", "depth", "0", "depth", "4.0", "count"],
    ]
    broken = segbench(*run, "broken")
    assert broken.code == 4
    assert "failed: tiny broken: ZeroDivisionError: division by zero" in broken.err
    assert "lab_own/data.py" in broken.err  # where in the user's own code


def test_other_harnesses_spellings_are_understood(tiny_lab, tmp_path):
    words = ("--models", "tiny", "--task", "probe", "--include_path", tiny_lab, "--output_path", tmp_path / "x")
    more = ("--batch_size", 2, "--model_args", "dtype=bfloat16,mask_swap=true", "--seeds", "0,1", "--dry_run", "--json")
    rows = json.loads(segbench("run", *words, *more).out)
    assert [(row["model"], row["seed"]) for row in rows] == [("tiny~dtype=bfloat16~mask_swap=True", s) for s in (0, 1)]


def test_a_limited_run_is_shown_but_enters_no_leaderboard(tiny_lab, tmp_path):
    said = segbench("run", *tiny_run(tiny_lab, tmp_path), "--tasks", "probe", "--limit", 2, "--examples", 0)
    assert said.code == 0, said.err
    assert re.search(r"^\| tiny +\| causal +\| probe +\| +0 \| +2 \|", said.out, re.MULTILINE)
    board = (tmp_path / "leaderboard.md").read_text()
    assert "| tiny" not in board
    assert "tiny on probe (limited to 2 images)" in board


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 4), (signal.SIGINT, 130)])
def test_a_signal_stops_at_a_checkpoint_and_the_same_command_goes_on(
    tiny_lab, tmp_path, monkeypatch, first_run, number, code
):
    class Interrupting(progress.Lines):
        def progress(self, images, total, what):
            super().progress(images, total, what)
            if what == "training" and images > total / 2:
                os.kill(os.getpid(), number)

    command = ("run", *tiny_run(tiny_lab, tmp_path), "--tasks", "probe")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(progress, "watcher", lambda cells, *_: Interrupting(cells, lambda line: None))
            said = segbench(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.code == code
    assert "the same command goes on" in said.err
    assert list(tmp_path.rglob("checkpoint.safetensors"))
    assert not list(tmp_path.rglob("cell.json"))
    assert "goes on from its checkpoint" in segbench(*command, "--dry-run").out
    assert segbench(*command).code == 0
    (resumed,), (whole,) = (list(folder.glob("tiny/probe/*/cell.json")) for folder in (tmp_path, first_run[0]))
    assert resumed.read_bytes() == whole.read_bytes()


def test_colours_are_left_out_where_NO_COLOR_asks_for_it(first_run, tiny_lab, monkeypatch):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    command = ("run", *tiny_run(tiny_lab, first_run[0]), "--tasks", "absent")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(segbench(*command).err)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(segbench(*command).err)


def test_the_demo_plans_three_models_on_its_group_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = segbench("demo", "--dry-run", "--json")
    assert said.code == 0, said.err
    rows = json.loads(said.out)
    assert len({row["model"] for row in rows}) == 3
    assert {row["task"] for row in rows} == {"probe-scenes", "knockout-scenes", "starvation-scenes"}
    assert all(row["path"].startswith("segbench-runs/demo/") for row in rows)


def test_the_leaderboard_of_a_store_is_the_same_as_at_the_end_of_a_run(first_run):
    output, first = first_run
    built = segbench("leaderboard", "build", "--output", output, "--no-figures")
    assert (built.code, built.out) == (0, first.out)
    (row,) = json.loads(segbench("leaderboard", "build", "--output", output, "--no-figures", "--json").out)
    assert row["model"] == "tiny"
    assert None not in row.values()


def test_an_empty_folder_has_no_leaderboard_and_says_how_to_get_one(tmp_path):
    said = segbench("leaderboard", "build", "--output", tmp_path)
    assert (said.code, said.out) == (4, "")
    assert f"holds no finished cell; first: segbench run --output {tmp_path}" in said.err


def test_training_never_overwrites_a_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    said = segbench("train", "tiny-clip-causal", "--output", tmp_path)
    assert said.code == 2
    assert "holds a checkpoint already" in said.err
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"


def test_training_needs_a_recipe(tiny_lab, tmp_path):
    said = segbench("train", "tiny", "--include", tiny_lab)
    assert said.code == 4
    assert "tiny: there is no recipe.yaml beside its weights" in said.err
    assert segbench("train", tmp_path / "none.yaml").code == 4


def test_every_field_of_a_model_card_can_be_given_as_a_model_argument(tiny_lab, tmp_path):
    words = ("--tasks", "probe", "--dry-run", "--json")
    for given in ("implementation=eager", "preprocess=native", f"weights={tiny_lab}/models/tiny", "attention=causal"):
        said = segbench("run", *tiny_run(tiny_lab, tmp_path), *words, "--model-args", given)
        assert said.code == 0, said.err
        assert given.partition("=")[0] in ModelSpec.model_fields
        assert json.loads(said.out)[0]["model"].startswith(f"tiny~{given.partition('=')[0]}=")


def test_weights_and_preprocess_have_options_of_their_own(tiny_lab, tmp_path):
    run = ("run", *tiny_run(tiny_lab, tmp_path), "--tasks", "probe", "--dry-run", "--json")
    weights = tiny_lab / "models/tiny"
    long = segbench(*run, "--model-args", f"weights={weights},preprocess=native")
    short = segbench(*run, "--weights", weights, "--preprocess", "native")
    assert (short.code, short.out) == (0, long.out)
    assert json.loads(short.out)[0]["model"] == "tiny~preprocess=native~weights=tiny"


def test_weights_are_one_models(tmp_path):
    words = ("--model", "tiny-*", "--tasks", "demo", "--output", tmp_path / "out", "--dry-run")
    said = segbench("run", *words, "--weights", tmp_path)
    assert (said.code, said.out) == (2, "")
    assert "--weights: one folder is one model's, but --model 'tiny-*' names 3" in said.err


def test_an_original_llava_is_converted_and_its_folder_told(tmp_path):
    made = original_llava.write(tmp_path)
    command = ("convert", made.source, "--output", tmp_path / "out", "--vision", made.vision)
    said = segbench(*command, "--attention", "causal")
    assert (said.code, said.out.strip()) == (0, str(tmp_path / "out"))
    assert f"read it with: segbench run --model NAME --weights {tmp_path / 'out'}" in said.err
    again = segbench(*command)
    assert (again.code, again.out) == (2, "")
    assert "is there already and not an empty folder" in again.err


def test_what_cannot_be_converted_is_told_without_a_trace(tmp_path):
    made = original_llava.write(tmp_path, mm_patch_merge_type="spatial_unpad")
    said = segbench("convert", made.source, "--output", tmp_path / "out")
    assert said.code == 4
    assert "mm_patch_merge_type is 'spatial_unpad', expected 'flat'" in said.err
    assert "Traceback" not in said.err
    assert "'nowhere' does not exist" in segbench("convert", "nowhere", "--output", tmp_path / "out").err


def test_the_data_folder_is_an_option_or_an_environment_variable_and_the_tasks_own_path_goes_first(
    tmp_path, monkeypatch
):
    def place(*words):
        return json.loads(segbench("show", "task", "probe-ade20k", "--json", *words).out)["data"]["path"]

    for home in ("one", "two"):
        (tmp_path / home / "ADEChallengeData2016").mkdir(parents=True)
    monkeypatch.delenv("SEGBENCH_DATA", raising=False)
    assert place().endswith("segbench/data/ade20k/ADEChallengeData2016")  # where `data get` would put it
    monkeypatch.setenv("SEGBENCH_DATA", str(tmp_path / "one"))
    assert place() == str(tmp_path / "one/ADEChallengeData2016")
    assert place("--data", tmp_path / "two") == str(tmp_path / "two/ADEChallengeData2016")
    (tmp_path / "mine.yaml").write_text("kind: probe\ndata: {name: ade20k, path: ./here}\n")
    said = segbench("show", "task", "mine", "--json", "--include", tmp_path / "mine.yaml", "--data", tmp_path / "two")
    assert json.loads(said.out)["data"]["path"] == str(tmp_path / "here")
