"""`segbench power` in one process: what it prints, how it ends, and what it does not import."""

import json
import subprocess
import sys

import pytest
from command import segbench
from made_results import BIDIR, CAUSAL, make


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    make(folder, [CAUSAL, BIDIR], images=30, examples=0)
    make(folder, [CAUSAL], ["probe"], images=12, examples=0, limit=12)
    return folder


def rows(store, *words):
    return json.loads(segbench("power", "--output", store, "--json", *words).out)


def test_a_line_for_every_difference_and_what_it_means(store):
    said = segbench("power", "--difference", 0.5, "--output", store)
    assert said.code == 0
    assert len(said.out.splitlines()) == 1 + len(rows(store, "--difference", 0.5))
    (line,) = (one for one in said.out.splitlines() if " gain " in one)
    gain = next(one for one in rows(store, "--difference", 0.5) if one["quantity"] == "gain")
    assert " 30 images " in line
    assert line.split()[-1] == str(gain["needed"])
    assert "12 images (pilot: limited to 12 images)" in said.out
    assert "found in 80 %" in said.err
    assert "one of 0.5 as often" in said.err


def test_half_the_difference_takes_four_times_the_images_and_more_power_more_of_them(store):
    words = ["--model", BIDIR.name, "--task", "probe-*"]
    (one,), (half,), (sure,) = (
        [row["needed"] for row in rows(store, *words, *more) if row["quantity"] == "drop"]
        for more in (["--difference", 0.2], ["--difference", 0.1], ["--difference", 0.2, "--power", 0.95])
    )
    assert 3.9 < half / one < 4.1
    assert sure > one


def test_models_and_tasks_are_chosen_by_pattern(store):
    found = rows(store, "--difference", 1, "--model", "*-bidir", "--task", "starvation-*,knockout-*")
    assert {(row["model"], row["task"]) for row in found} == {
        (BIDIR.name, "starvation-scenes"),
        (BIDIR.name, "knockout-scenes"),
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--difference", 0], "--difference: expected points above zero"),
        (["--difference", "nan"], "--difference: expected points above zero"),
        (["--difference", 1, "--power", 80], "--power: expected a share between 0.5 and 1, got 80"),
        ([], "Missing option '--difference'"),
    ],
)
def test_wrong_options_exit_with_2(store, words, told):
    said = segbench("power", "--output", store, *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err


def test_nothing_to_plan_from_says_what_to_run(store, tmp_path):
    said = segbench("power", "--difference", 1, "--output", tmp_path)
    assert (said.code, said.out) == (4, "")
    assert f"first, a pilot: segbench run --limit 100 --output {tmp_path}" in said.err
    other = segbench("power", "--difference", 1, "--output", store, "--model", "nobody")
    assert other.code == 4
    assert f"only {BIDIR.name} on knockout-scenes" in other.err


def test_planning_imports_nothing_heavy(store):
    code = f"""
import sys
from segbench.cli import main
sys.argv = ["segbench", "power", "--difference", "1", "--output", {str(store)!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end
heavy = [name for name in ("torch", "transformers", "pandas", "matplotlib") if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gain" in done.stdout
