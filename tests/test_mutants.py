"""Bugs that give plausible curves. Each is put into the product, and the check that stands for it must fail.

Every check is first seen to pass on the product as it is.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import tiny_runs
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex
from transformers.masking_utils import create_causal_mask

from segbench import attention, stats
from segbench.adapters import base
from segbench.adapters.canvas import Canvas
from segbench.adapters.layout import Framing
from segbench.errors import ModelError
from segbench.kernels import Target
from segbench.metrics import confusion, oracle
from segbench.types import IGNORE, GridMap, Sample, Site

H, W, PATCH = 6, 6, 8  # the tiny model's grid, and model pixels per patch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("mutants"))


def load(checkpoint, **fields):
    return base.load(tiny_models.spec(checkpoint, **fields), "cpu")


# 1. A grid that is stretched over the whole image, although the processor cropped it.


def seen_by_the_model(adapter):
    """mIoU of an oracle that knows only the pixels which the checkpoint's processor really handed to the model."""
    mask = np.repeat(np.arange(6, dtype=np.uint8), 32)[None].repeat(96, 0)  # 96 x 192: six upright bands
    grey = Image.fromarray(np.repeat(40 * mask[..., None], 3, 2))
    batch = adapter.prepare([Sample("bands", grey, mask)])
    settings = adapter.processor.image_processor
    red = batch.inputs["pixel_values"][0, 0] * settings.image_std[0] + settings.image_mean[0]
    bands = (red * 255 / 40).round().clamp(0, 5).long()
    one_hot = torch.nn.functional.one_hot(bands, 6).double()
    fractions = one_hot.reshape(H, PATCH, W, PATCH, 6).mean((1, 3)).reshape(H * W, 6).numpy()
    (grid_map,) = batch.grids
    truth = np.where(_seen(grid_map), mask, IGNORE)
    return float(stats.miou(confusion.counts(oracle.predict(fractions, grid_map), truth, 6)))


def test_a_stretched_grid_is_caught(checkpoint, monkeypatch):
    adapter = load(checkpoint, preprocess="native")
    assert seen_by_the_model(adapter) > 95
    monkeypatch.setattr(Canvas, "grid_map", lambda self, image: GridMap.squash(self.grid, image))
    monkeypatch.setattr(Framing, "grid_map", lambda self, place, image: GridMap.squash(place.grid, image))
    assert seen_by_the_model(adapter) < 70


# 2. Tokens read column by column.


def lit_patches(adapter, site):
    """For three patches that are painted over, the token that moves most at a site."""
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    pictures = [image]
    for row, column in ((0, 4), (1, 3), (5, 2)):
        painted = image.copy()
        painted[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] = (255, 0, 0)
        pictures.append(painted)
    mask = np.zeros((48, 48), np.uint8)
    states = adapter.read(adapter.prepare([Sample("noise", Image.fromarray(one), mask) for one in pictures]), [site])
    return (states[site][1:] - states[site][:1]).norm(dim=-1).argmax(1).tolist()


@pytest.mark.parametrize("site", [base.ENCODER, base.ADAPTER])
def test_transposed_tokens_are_caught(checkpoint, monkeypatch, site):
    adapter = load(checkpoint)
    assert lit_patches(adapter, site) == [4, 9, 32]
    place, order = Canvas.place, np.arange(36).reshape(H, W).T.flatten()

    def transposed(self, picture):
        found = place(self, picture)
        if site == base.ENCODER:
            return replace(found, consumed=(found.consumed[0][order],))
        return replace(found, patches=found.patches[order])

    monkeypatch.setattr(Canvas, "place", transposed)
    assert lit_patches(adapter, site) != [4, 9, 32]
    with pytest.raises(ModelError, match="layout self-test failed"):
        load(checkpoint)


# 3. Class ids that are shifted by one on the way into the loss and into the counts.


def disagreement(folder, output):
    """By how much the recorded mIoU is not torchmetrics' on the label maps and the ground truth of the data set."""
    result = tiny_runs.measure(folder, "probe", output)["probe"].result
    (recorded,) = (m.value for m in result.measures if (m.metric, m.site) == ("miou", "adapter"))
    examples, classes = result.arrays("examples"), len(result.about["classes"])
    theirs = MulticlassJaccardIndex(classes, average="macro", ignore_index=IGNORE)
    for image in range(tiny_runs.VAL):
        said, real = (torch.from_numpy(examples[f"{image}.{name}"].astype(int)) for name in ("adapter", "truth"))
        theirs.update(said[None], real[None])
    return abs(recorded - 100 * theirs.compute().item())


def test_labels_shifted_by_one_are_caught(tmp_path, monkeypatch):
    folder = tiny_runs.lab(tmp_path / "lab", {"probe": f"{tiny_runs.PROBE}sites: [adapter]\n"})
    assert disagreement(folder, tmp_path / "right") < 1e-3
    original = Target.of.__func__

    def shifted(cls, grid_map, mask, device="cpu"):
        target = original(cls, grid_map, mask, device)
        return replace(target, labels=(target.labels + 1) % 16 * target.valid)

    monkeypatch.setattr(Target, "of", classmethod(shifted))
    assert disagreement(folder, tmp_path / "shifted") > 1


# 4. A knockout whose mask does nothing.


def test_a_knockout_mask_that_does_nothing_is_caught_at_load(checkpoint, monkeypatch):
    assert load(checkpoint).selftests["effect"] > 0
    monkeypatch.setattr(attention, "_without", lambda given, *others: given)
    with pytest.raises(ModelError, match="a knockout changes nothing: its mask is not honoured"):
        load(checkpoint)


# 5. A causal model that is called bidirectional: by its spec, or because the mask of Eq. (2) is not made.


def test_a_causal_model_labelled_bidirectional_is_caught_at_load(tmp_path):
    folder = tiny_models.write(tmp_path / "causal", image_attention="causal")
    assert load(folder, attention="causal").selftests["first_token"] == 0
    with pytest.raises(ModelError, match="trained with causal image attention, the spec says bidirectional"):
        load(folder, attention="bidirectional")


def test_attention_that_stays_causal_in_a_bidirectional_model_is_caught_at_load(checkpoint, monkeypatch):
    assert load(checkpoint, attention="bidirectional").selftests["first_token"] > 0

    def causal(text, embeddings, real, image, cache=None):
        return create_causal_mask(
            config=text.config,
            inputs_embeds=embeddings,
            attention_mask=real,
            past_key_values=cache,
            position_ids=None,
        )

    monkeypatch.setattr(attention, "bidirectional_mask", causal)
    monkeypatch.setattr(base, "bidirectional_mask", causal)
    with pytest.raises(ModelError, match="the first image token does not see the last one, yet the spec says bidirec"):
        load(checkpoint, attention="bidirectional")


def _seen(grid_map):
    top, left, bottom, right = grid_map.seen
    seen = np.zeros(grid_map.image, bool)
    seen[top:bottom, left:right] = True
    return seen


# 6. What else has been read for patches: registers, a token that stands for no pixel, the states behind the last norm.


def test_registers_read_as_patches_are_caught_at_load(tmp_path, monkeypatch):
    folder = tiny_models.write(tmp_path, "dinov2-registers")
    assert load(folder).selftests["placeless"] == tiny_models.REGISTERS
    place = Canvas.place

    def first(self, picture):
        found = place(self, picture)
        return replace(found, patches=found.patches - tiny_models.REGISTERS)

    monkeypatch.setattr(Canvas, "place", first)
    with pytest.raises(ModelError, match=r"layout self-test failed: an image token is .* patches from where the grid"):
        load(folder)


def test_registers_consumed_as_patches_are_caught_at_load(tmp_path, monkeypatch):
    folder = tiny_models.write(tmp_path, "dinov2-registers")
    place = Canvas.place
    monkeypatch.setattr(Canvas, "place", lambda self, picture: _consumed_from_zero(place(self, picture)))
    with pytest.raises(ModelError, match="layout self-test failed: a row that the projector consumes is"):
        load(folder)


def test_a_patch_cut_as_if_it_were_cls_is_caught_at_load(tmp_path):
    folder = tiny_models.write(tmp_path, "siglip", vision_feature_select_strategy="default")
    with pytest.raises(ModelError, match="Image features and image tokens do not match"):
        load(folder)


def test_states_behind_the_last_norm_are_not_the_last_residual(checkpoint, monkeypatch):
    adapter = load(checkpoint)
    sample = Sample("noise", Image.new("RGB", (60, 40), (200, 30, 90)), np.zeros((40, 60), np.uint8))
    batch, last = adapter.prepare([sample]), Site("llm", adapter.depth)

    def is_residual():
        found = adapter.read(batch, [last, base.FINAL])
        return torch.equal(adapter.parts.norm(found[last]), found[base.FINAL])

    assert is_residual()
    run = base.Adapter._run

    def mixed(self, encoded, wanted, taken, *others):
        run(self, encoded, wanted | {base.FINAL}, taken, *others)
        taken[last] = taken[base.FINAL]

    monkeypatch.setattr(base.Adapter, "_run", mixed)
    assert not is_residual()


def _consumed_from_zero(found):
    return replace(found, consumed=(np.arange(len(found.patches))[:, None],))
