"""Every model card of the package is runnable with nothing but weights: here with tiny ones of the same family."""

import json
import re
from pathlib import Path

import pytest
import tiny_families
import tiny_models
from safetensors import safe_open
from typer.testing import CliRunner

from segbench import registry
from segbench.adapters import base, weights
from segbench.cli import app
from segbench.library import Library, data_folder
from segbench.planning import _revision

FAMILIES = {
    "llava_onevision": "llava_onevision",
    "llava_next": "llava_next",
    "qwen2_5_vl": "qwen2_5_vl",
}
TOWERS = {"clip": "clip", "dinov2": "dinov2", "siglip": "siglip"}
CARDS = sorted(path.stem for path in (data_folder() / "models").glob("*.yaml"))
SHIPPED = [name for name in CARDS if name.startswith("tiny-")]
REAL = [name for name in CARDS if name not in SHIPPED]


def stand_in(name: str, folder: Path) -> Path:
    """A tiny checkpoint of the card's family."""
    adapter = Library().model(name).adapter
    if adapter == "llava":
        return tiny_models.write(folder, TOWERS[name.split("-")[1]])
    if adapter == "deepseek_vl":
        return tiny_families.write("deepseek_vl" if "1.3b" in name else "deepseek_vl_hybrid", folder)
    return tiny_families.write(FAMILIES[adapter], folder)


def test_the_models_of_the_mission_have_a_card():
    towers = {f"llava15-{tower}-{attention}" for tower in TOWERS for attention in ("causal", "bidir")}
    others = {"llava-onevision-7b", "deepseek-vl-7b", "deepseek-vl-1.3b", "llava-next-llama3-8b", "qwen2.5-vl-7b"}
    assert towers | others <= set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_card_says_where_its_weights_are_and_what_it_is(name):
    spec = Library().model(name)
    assert spec.adapter in registry.names("adapters")
    assert spec.license
    assert spec.parameters
    assert spec.description
    assert (spec.attention == "bidirectional") is name.endswith("-bidir")
    assert spec.baseline == (name.replace("bidir", "causal") if name.endswith("-bidir") else None)
    if spec.hub:
        assert re.fullmatch("[0-9a-f]{40}", spec.revision or "")
        assert f"hf download {spec.hub} --revision {spec.revision}" in (weights.missing(spec) or "")
        assert _revision(spec) == spec.revision
    else:
        assert "segbench convert" in spec.obtain
        assert spec.obtain in (weights.missing(spec) or "")
        assert spec.published()["revision"] == "unknown"


def test_card_without_weights_is_missing_and_says_how_to_come_by_them():
    words = ["run", "--model", "llava15-siglip-bidir", "--tasks", "demo", "--dry-run", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 4
    rows = json.loads(found.stdout)
    assert {row["status"] for row in rows} == {"missing"}
    assert all("segbench convert ORIGINAL" in row["note"] for row in rows)


@pytest.mark.parametrize("name", REAL)
def test_card_runs_with_weights_of_its_family(name, tmp_path):
    folder = stand_in(name, tmp_path / "weights")
    smaller = {"resolution": 96} if Library().model(name).resolution else {}
    (spec,) = Library().models(name, {"weights": str(folder), **smaller})
    adapter = base.load(spec, "cpu")
    assert adapter.selftests["leak"] == 0 < adapter.selftests["effect"]
    assert (adapter.selftests["first_token"] > 0) is (spec.attention == "bidirectional")
    assert str(adapter.model.dtype) == f"torch.{spec.dtype}"
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert len(list(tensors.keys())) > 20
