"""`segbench compare` in one process: what it prints, how it ends, and what it does not import."""

import json
import subprocess
import sys

import pytest
from command import segbench
from made_results import BIDIR, CAUSAL, RANDOM, make


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    make(folder, [CAUSAL, BIDIR, RANDOM], images=30, examples=0)
    return folder


def test_two_models_quantity_by_quantity(store):
    said = segbench("compare", BIDIR.name, CAUSAL.name, "--output", store)
    assert said.code == 0
    line = next(one for one in said.out.splitlines() if one.startswith("peak "))
    assert line.endswith("better")
    assert "One probe seed each" in said.out
    rows = json.loads(segbench("compare", BIDIR.name, CAUSAL.name, "--output", store, "--json").out)[0]["rows"]
    told = {row["quantity"]: row for row in rows}
    assert set(told) >= {"encoder", "adapter", "drop", "peak", "recovery", "llm.1", "llm.8"}
    assert told["peak"]["difference"] == pytest.approx(told["peak"]["model"] - told["peak"]["baseline"], abs=1e-3)
    assert f"{told['peak']['difference']:+.2f}" in line
    assert "standard_error_seeds" not in told["peak"]
    assert told["peak"]["withstands"] > 0.5


def test_a_wider_margin_takes_a_larger_difference(store):
    verdicts = {
        margin: {row["quantity"]: row["verdict"] for row in json.loads(said.out)[0]["rows"]}
        for margin in (0.5, 50)
        if (said := segbench("compare", BIDIR.name, CAUSAL.name, "--output", store, "--margin", margin, "--json"))
    }
    assert (verdicts[0.5]["peak"], verdicts[50]["peak"]) == ("better", "same")


def test_several_seeds_are_told_and_counted(store, tmp_path):
    for seed in (0, 1):
        make(tmp_path, [CAUSAL, BIDIR], ["probe"], images=30, examples=0, seed=seed)
    said = segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path)
    assert "probe seeds 0,1 and 0,1" in said.out
    assert "One probe seed each" not in said.out


def test_other_images_exit_with_3(tmp_path):
    make(tmp_path, [CAUSAL], ["probe"], images=12, examples=0)
    make(tmp_path, [BIDIR], ["probe"], images=13, examples=0)
    said = segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path)
    assert said.code == 3
    assert "differ in their images" in said.err
    assert "Traceback" not in said.err


def test_a_task_that_one_of_them_lacks_exits_with_4_after_the_others(store, tmp_path):
    make(tmp_path, [CAUSAL, BIDIR], ["probe"], images=12, examples=0)
    make(tmp_path, [CAUSAL], ["probe"], images=12, examples=0, task="more")
    said = segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path)
    assert said.code == 4
    assert "probe-scenes: 12 images" in said.out
    assert f"missing: probe-more: {BIDIR.name} was not measured" in said.err
    chosen = segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path, "--task", "probe-sc*")
    assert chosen.code == 0


def test_limited_runs_are_compared_as_a_pilot(tmp_path):
    make(tmp_path, [CAUSAL, BIDIR], ["probe"], images=6, examples=0, limit=6)
    said = segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path)
    assert "NO RESULT, only a pilot: limited to 6 images" in said.out
    (told,) = json.loads(segbench("compare", BIDIR.name, CAUSAL.name, "--output", tmp_path, "--json").out)
    assert told["incomplete"] == "limited to 6 images"


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["tiny-clip-bidr", CAUSAL.name], 4, "did you mean 'tiny-clip-bidir'?"),
        ([BIDIR.name], 2, "expected: segbench compare MODEL BASELINE"),
        ([BIDIR.name, CAUSAL.name, "--reported"], 2, "--reported takes no MODEL"),
        ([BIDIR.name, CAUSAL.name, "--margin", "-1"], 2, "--margin"),
        (["--reported", "--model", "llava15-clip-cusal"], 2, "did you mean 'llava15-clip-causal'?"),
    ],
)
def test_a_wrong_command_is_told(store, words, code, problem):
    said = segbench("compare", *words, "--output", store)
    assert said.code == code
    assert problem in said.err
    assert "Traceback" not in said.err


def test_reported_numbers_without_measurements_say_so(store):
    said = segbench("compare", "--reported", "--output", store)
    assert said.code == 0
    line = next(one for one in said.out.splitlines() if "llava15-siglip-bidir" in one and " encoder " in one)
    assert "38.70 (derived)" in line
    assert "not measured" in line
    rows = json.loads(segbench("compare", "--reported", "--output", store, "--json").out)
    assert len(rows) == 54 + 26 + 12 + 12 + 9
    assert all(row["measured"] is None for row in rows)
    assert rows[0]["reported"]["source"] == "arXiv 2603.17228v1"
    one = json.loads(
        segbench("compare", "--reported", "--model", "llava15-clip-bidir", "--json", "--output", store).out
    )
    assert {row["reported"]["model"] for row in one} == {"llava15-clip-bidir"}


def test_compare_imports_nothing_heavy(store):
    code = f"""
import sys
from segbench.cli import main
for words in (["compare", "--reported"], ["compare", "{BIDIR.name}", "{CAUSAL.name}", "--output", "{store}"]):
    sys.argv = ["segbench", *words]
    try:
        main()
    except SystemExit:
        pass
    heavy = [name for name in ("torch", "transformers", "matplotlib", "datasets", "scipy") if name in sys.modules]
    if heavy:
        raise SystemExit(f"{{words}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "better, worse: beyond the interval" in done.stdout
