"""A data set, a kind and a model family from a user's own folder, each as the README shows it."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import tiny_models
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration
from typer.testing import CliRunner

from segbench.cli import app

LAB = dict(
    re.findall(
        r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```",
        (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    for name, text in LAB.items():
        path = tmp_path / "lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "lab"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def write_vip(folder):
    tiny = tiny_models.build("clip").config
    told = {"image_token_id": tiny_models.IMAGE, "vision_feature_layers": [-2, -3, 2]}
    config = VipLlavaConfig(vision_config=tiny.vision_config, text_config=tiny.text_config, **told)
    VipLlavaForConditionalGeneration(config).save_pretrained(folder)
    tiny_models.processor("clip").save_pretrained(folder)


def segbench(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, f"{found.output}\n{found.exception!r}"
    return json.loads(found.stdout)


def test_a_data_set_a_kind_and_a_model_family_of_ones_own_run_without_touching_the_package(lab, tmp_path):
    write_vip(lab / "models/vip-tiny")
    rows = segbench(
        *("run", "--include", lab, "--model", "vip-tiny", "--tasks", "probe-stripes,smoothness"),
        *("--output", tmp_path / "out", "--device", "cpu", "--no-figures", "--json"),
    )
    assert {row["task"]: row["status"] for row in rows} == {"probe-stripes": "ran", "smoothness": "ran"}
    probe, smoothness = (json.loads(f.read_text())["cell"]["measures"] for f in _cells(tmp_path / "out"))
    miou = {m["site"]: m["value"] for m in probe if m["metric"] == "miou"}
    assert list(miou) == ["encoder", "adapter", "llm.1", "llm.2", "llm.3", "llm.4", "llm.norm"]
    assert miou["encoder"] > 60  # a constant class gives 25
    assert {m["site"] for m in smoothness} == set(miou)
    assert all(-1 <= m["value"] <= 1 for m in smoothness)
    for cell in _cells(tmp_path / "out"):  # the attention of a family of one's own is tested at load as any other's
        selftests = json.loads((cell.parent / "provenance.json").read_text())["selftests"]
        assert selftests["leak"] == 0
        assert selftests["effect"] > 0


def test_a_change_in_ones_own_code_is_another_measurement(lab, tmp_path):
    write_vip(lab / "models/vip-tiny")
    plan = ("run", "--include", lab, "--model", "vip-tiny", "--tasks", "smoothness", "--dry-run", "--json")
    (before,) = segbench(*plan, "--output", tmp_path / "out")
    (lab / "mine/smoothness.py").write_text(f"{LAB['mine/smoothness.py']}\n")
    (after,) = segbench(*plan, "--output", tmp_path / "out")
    assert before["fingerprint"] != after["fingerprint"]


def _cells(output):
    return sorted(output.glob("*/*/*/cell.json"))
