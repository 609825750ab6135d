"""A data set, a kind and a model family from a user's own folder. The README shows these files as they are here."""

import importlib
import json
import sys

import pytest
import tiny_models
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration
from typer.testing import CliRunner

from segbench.cli import app

LAB = {
    "mine/stripes.py": '''\
"""A data set: a dark and a light half, divided at random."""

import numpy as np
from PIL import Image

from segbench.specs import Spec
from segbench.types import Dataset, Sample


class Params(Spec):
    images: int = 16


def load(params, split):
    return Stripes(params.images, seed=["train", "val"].index(split))


class Stripes(Dataset):
    classes = ("dark", "light")

    def __init__(self, images, seed):
        self.images, self.seed = images, seed
        self.manifest = f"stripes {images} {seed}"  # everything that decides the samples

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        random = np.random.default_rng([self.seed, index])
        mask = np.zeros((64, 96), np.uint8)
        mask[:, random.integers(24, 72) :] = 1
        image = random.normal(80 + 90 * mask[..., None], 20, (64, 96, 3)).clip(0, 255).astype(np.uint8)
        return Sample(f"{self.seed}-{index}", Image.fromarray(image), mask)
''',
    "mine/smoothness.py": '''\
"""A kind: how alike are neighbouring image tokens, site by site?"""

from segbench.specs import DataSpec, Spec
from segbench.types import Measure


class Params(Spec):
    data: DataSpec


def requires(params):
    return ()  # names of tasks whose cells this one reads


def run(job):
    import torch

    val = job.params.data.load("val", job.limit)
    batch = job.adapter.prepare([val[index] for index in range(len(val))])
    for site, states in job.adapter.read(batch, job.adapter.sites()).items():  # each [b, t, d]
        alike = torch.cosine_similarity(states[:, 1:], states[:, :-1], dim=-1)
        yield Measure("smoothness", alike.mean().item(), "ratio", len(val), str(site))
''',
    "mine/vipllava.py": '''\
"""A model family: ViP-LLaVA, whose projector reads five vision layers at once."""

import torch
from transformers import LlavaProcessor, VipLlavaForConditionalGeneration

from segbench.adapters.base import ENCODER, Adapter, Batch, Parts
from segbench.types import GridMap


def load(spec, device):
    model = VipLlavaForConditionalGeneration.from_pretrained(spec.weights, dtype=spec.dtype).eval().to(device)
    return VipLlava(spec, torch.device(device), model, LlavaProcessor.from_pretrained(spec.weights))


class VipLlava(Adapter):
    def __init__(self, spec, device, model, processor):
        outer, text, vision = model.model, model.model.language_model, model.config.vision_config
        super().__init__(
            spec, device, Parts(outer, text, text.norm, outer.multi_modal_projector, model.config.image_token_id)
        )
        self.processor, self.side = processor, vision.image_size
        self.consumed = vision.hidden_size * len(model.config.vision_feature_layers)

    @property
    def grid(self):
        return (self.side // self.processor.patch_size,) * 2

    @property
    def widths(self):
        return dict.fromkeys(self.sites(), self.parts.text.config.hidden_size) | {ENCODER: self.consumed}

    def prepare(self, samples):
        images = [sample.image.resize((self.side, self.side)) for sample in samples]
        inputs = self.processor(images=images, text=[self.spec.prompt] * len(images), return_tensors="pt")
        at = (inputs["input_ids"] == self.parts.image_token_id).nonzero()[:, 1].reshape(len(images), -1)
        grids = tuple(GridMap.squash(self.grid, sample.mask.shape) for sample in samples)
        return Batch(inputs, at, grids, tuple(sample.mask for sample in samples))

    def patches(self, consumed):
        return consumed[0]  # what the projector was called with: patches in raster order
''',
    "models/vip-tiny.yaml": """\
adapter: mine.vipllava
weights: ./vip-tiny
""",
    "tasks/probe-stripes.yaml": """\
kind: probe
data: {name: mine.stripes, images: 8}
protocol: {epochs: 8, batch: 4, lr: 1e-2, norm: standardize}
""",
    "tasks/smoothness.yaml": """\
kind: mine.smoothness
data: mine.stripes
""",
}


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
    config = VipLlavaConfig(
        vision_config=tiny.vision_config,
        text_config=tiny.text_config,
        image_token_id=tiny_models.IMAGE,
        vision_feature_layers=[-2, -3, 2],
    )
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
