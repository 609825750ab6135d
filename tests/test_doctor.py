import json
import os
import subprocess
import sys
from pathlib import Path

from command import segbench

from segbench import doctor
from segbench.library import Library


def test_everything_that_is_shipped_is_well():
    findings = {one.what: one for one in doctor.examine(Library())}
    assert not [one.problem for one in findings.values() if one.problem]
    assert {"segbench", "torch", "device", "memory", "disk", "torchvision", "lmms_eval", "task probe-scenes"} <= set(
        findings
    )
    assert findings["probes' products"].found.endswith((" on cpu", " on cuda"))
    assert findings["model tiny-clip-causal"].found.startswith("weights ")


def test_what_is_wrong_is_told_and_exits_4(tmp_path):
    (tmp_path / "models/cut").mkdir(parents=True)
    (tmp_path / "models/cut/config.json").write_text("{}")
    (tmp_path / "models/cut/model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (tmp_path / "models/cut.yaml").write_text("adapter: llava\nweights: ./cut\n")
    (tmp_path / "models/gone.yaml").write_text("adapter: llava\nweights: ./gone\n")
    (tmp_path / "models/far.yaml").write_text(f"adapter: llava\nhub: nobody/nothing\nrevision: {'a' * 40}\n")
    (tmp_path / "models/torn.yaml").write_text("adapter: [\n")
    (tmp_path / "odd.yaml").write_text("kind: probe\ndata: scenes\nepochs: 3\n")
    said = segbench("doctor", "--include", tmp_path, "--json")
    assert said.code == 4
    problems = {row["what"]: row["problem"] for row in json.loads(said.out) if "problem" in row}
    assert set(problems) == {"model cut", "model gone", "specs", "task odd"}
    assert "model.safetensors: no safetensors header, or cut off" in problems["model cut"]
    assert "put a transformers checkpoint (safetensors) there" in problems["model gone"]
    assert "torn.yaml" in problems["specs"]
    assert "unknown key 'epochs'" in problems["task odd"]
    assert "hf download nobody/nothing" in next(r["found"] for r in json.loads(said.out) if r["what"] == "model far")
    assert f"problem: model cut: {problems['model cut']}" in said.err


def test_torchvision_is_looked_for_and_not_imported(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    code = "from segbench.cli import main; main()"
    command = [sys.executable, "-c", code, "doctor", "--json"]
    path = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(doctor.__file__).parents[1]}"}
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
    assert said.returncode == 0, said.stderr
    (row,) = [row for row in json.loads(said.stdout) if row["what"] == "torchvision"]
    assert row["found"].startswith("present")
