"""A recipe of three steps per stage makes a whole checkpoint, the same one each time."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from segbench.adapters import base
from segbench.data.scenes import questions
from segbench.errors import MissingInput, SpecError
from segbench.specs import ModelSpec
from segbench.training import answers, recipe, tokens, train
from segbench.training.pool import held_out, pool

RECIPE = """
name: minute
scenes: 12
threads: 1
precision: float32
image_attention: {attention}
encoder: {{steps: 3, batch: 4, learning_rate: 1e-3, width: 32, feedforward: 48, layers: 2, patch: 16, text_width: 32}}
language: {{steps: 3, batch: 4, learning_rate: 1e-3, width: 32, feedforward: 48, layers: 2, facts: 4, questions: 3}}
alignment: {{steps: {alignment}, batch: 2, learning_rate: 1e-2, positions: 4, closed: 2}}
instruction:
  {{steps: {instruction}, batch: 2, learning_rate: 1e-3, adapter_learning_rate: 1e-4, positions: 4, closed: 2}}
"""


def silent(line):
    pass


def make(folder, attention="bidirectional", alignment=3, instruction=3, work=None):
    folder.mkdir(parents=True)
    path = folder / "in.yaml"
    path.write_text(RECIPE.format(attention=attention, alignment=alignment, instruction=instruction))
    return train(path, folder / "out", silent, work=work or folder / "work", images=2)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def bidirectional(tmp_path_factory):
    return make(tmp_path_factory.mktemp("train") / "bidirectional")


def test_the_folder_loads_whole_and_says_how_it_was_trained(bidirectional):
    model, told = LlavaForConditionalGeneration.from_pretrained(bidirectional, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.config.image_attention == "bidirectional"
    report = json.loads((bidirectional / "training.json").read_text())
    assert [point["step"] for point in report["alignment_curve"]] == [1, 2, 3]
    assert {row["kind"] for row in report["held_out_answers"]} == {"position", "any"}
    assert recipe.read(bidirectional / "recipe.yaml").model_dump(mode="json") == report["recipe"]


def test_what_was_written_answers_through_its_own_processor(bidirectional):
    model = LlavaForConditionalGeneration.from_pretrained(bidirectional, attn_implementation="eager").eval()
    processor, unseen = LlavaProcessor.from_pretrained(bidirectional), held_out(2, 96)
    asked = [questions(counts, np.random.default_rng(0), 4, 2) for counts in unseen.counts]
    for image, row, said in zip(unseen.images, asked, answers.packed(model, unseen.images, asked), strict=True):
        for question, word in zip(row, said, strict=True):
            generated = answers.generated(model, processor, Image.fromarray(image), question.text)
            if word not in tokens.SPECIAL:  # which generate() does not show
                assert generated.split()[:1] == [word]


def test_what_was_written_is_read_at_every_site_and_passes_the_self_tests(bidirectional):
    spec = ModelSpec(name="minute", adapter="llava", weights=bidirectional, attention="bidirectional")
    adapter = base.load(spec, "cpu")
    assert adapter.placement((48, 48)).grid == (6, 6)
    assert adapter.widths[base.ENCODER] == 2 * 32  # of two vision layers
    assert adapter.selftests["first_token"] > 0


def test_the_same_recipe_makes_the_same_weights(bidirectional, tmp_path):
    again = weights(make(tmp_path / "again"))
    for name, tensor in weights(bidirectional).items():
        assert np.array_equal(tensor, again[name]), name


def test_causal_shares_everything_but_what_saw_the_mask(bidirectional, tmp_path):
    causal = weights(make(tmp_path / "causal", "causal", work=bidirectional.parent / "work"))
    for name, tensor in weights(bidirectional).items():
        assert np.array_equal(tensor, causal[name]) == ("vision_tower" in name), name


def test_each_stage_moves_only_its_part(bidirectional, tmp_path):
    work = bidirectional.parent / "work"
    start = weights(make(tmp_path / "0", alignment=0, instruction=0, work=work))
    aligned = weights(make(tmp_path / "1", instruction=0, work=work))
    for name, tensor in start.items():
        assert np.array_equal(tensor, aligned[name]) == ("multi_modal_projector" not in name), name
        assert np.array_equal(aligned[name], weights(bidirectional)[name]) == ("vision_tower" in name), name


def test_held_out_scenes_are_not_those_of_training(tmp_path):
    seen, unseen = pool(tmp_path, 6, 96, 1, silent), held_out(6, 96)
    assert not any(np.array_equal(a, b) for a in seen.images for b in unseen.images)
    assert len(pool(tmp_path, 6, 96, 1, silent)) == 6


def test_a_wrong_recipe_is_named(tmp_path):
    with pytest.raises(MissingInput, match=r"recipe\.yaml"):
        recipe.read(tmp_path / "recipe.yaml")
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(attention="causal", alignment=1, instruction=1).replace("facts", "fact"))
    with pytest.raises(SpecError, match=r"r\.yaml:8: language: unknown key 'fact', did you mean 'facts'\?"):
        recipe.read(path)
    path.write_text("name: [")
    with pytest.raises(SpecError, match=r"r\.yaml:1:"):
        recipe.read(path)


def test_shared_work_is_keyed_by_everything_that_makes_it(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.format(attention="causal", alignment=1, instruction=1))
    base = recipe.read(path)
    other_seed = base.model_copy(update={"seed": 1})
    other_end = base.model_copy(update={"image_attention": "bidirectional"})
    assert base.digest("encoder") != other_seed.digest("encoder")
    assert base.digest("encoder") == other_end.digest("encoder")
    assert base.digest("encoder") != base.digest("language")
