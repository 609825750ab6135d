"""Packed questions are answered as if asked alone, and the two attentions differ in image-to-image entries only."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segbench.attention import bidirectional_images
from segbench.data.scenes import Question
from segbench.training import answers, encoder, language, llava, packing, tokens
from segbench.training.recipe import Recipe

TINY = {
    "scenes": 8,
    "threads": 1,
    "precision": "float32",
    "image_attention": "bidirectional",
    "encoder": {"steps": 0, "batch": 4, "learning_rate": 1e-3, "width": 32, "feedforward": 48, "size": 48, "layers": 2},
    "language": {"steps": 0, "batch": 4, "learning_rate": 1e-3, "width": 32, "feedforward": 48, "layers": 3},
    "alignment": {"steps": 0, "batch": 4, "learning_rate": 1e-3},
    "instruction": {"steps": 0, "batch": 4, "learning_rate": 1e-3},
}
IMAGE = 36  # tokens of a 48-pixel picture in patches of 8


def build(attention):
    recipe = Recipe.model_validate({**TINY, "name": "tiny", "image_attention": attention})
    return llava.assemble(recipe, encoder.build(recipe.encoder, 0), language.build(recipe.language, 0)).eval()


def ask(*texts):
    return [Question("any" if text.startswith("any") else "position", text, "no") for text in texts]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (1, 48, 48, 3), dtype=np.uint8)


def logits(model, image, asked):
    ids, _, where = packing.pack([asked], IMAGE)
    places = packing.layout(IMAGE, asked)
    with torch.no_grad():
        out = model(
            input_ids=ids,
            pixel_values=tokens.pixels(image),
            attention_mask=packing.mask(places, model.config.image_attention),
            position_ids=packing.positions(places),
        ).logits
    return out[0, where[0] - 1]


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_an_answer_does_not_depend_on_the_other_questions(image, attention):
    model = build(attention)
    one = logits(model, image, ask("r1 c1", "any sofa", "r3 c2"))
    other = logits(model, image, ask("r0 c5", "any sky", "r3 c2"))
    assert torch.equal(one[2], other[2])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_an_answer_is_what_the_question_gets_alone(image, attention):
    model = build(attention)
    together = logits(model, image, ask("r1 c1", "any sofa", "r3 c2"))
    alone = logits(model, image, ask("r3 c2"))
    assert torch.allclose(together[2], alone[0], atol=1e-5)


def test_packed_and_generated_answers_agree(image):
    for attention in ("causal", "bidirectional"):
        model = build(attention)
        processor = tokens.processor(48, 8)
        asked = ask("r1 c1", "any sofa", "r3 c2", "r0 c0")
        packed = answers.packed(model, image, [asked])[0]
        for question, answer in zip(asked, packed, strict=True):
            said = answers.generated(model, processor, Image.fromarray(image[0]), question.text)
            if answer not in tokens.SPECIAL:  # which generate() does not show
                assert said.split()[:1] == [answer]


def test_generate_honours_bidirectional_attention(image):
    """The first image token's state changes with the last patch only when image tokens see each other."""
    changed = image.copy()
    changed[:, -8:, -8:] = 255 - changed[:, -8:, -8:]
    for attention, moves in (("causal", False), ("bidirectional", True)):
        model = build(attention)
        features = torch.randn(1, IMAGE, 64, generator=torch.Generator().manual_seed(0))
        states = []
        for last in (0.0, 3.0):
            features[0, -1] = last
            embeds = model.get_input_embeddings()(torch.full((1, 1 + IMAGE), tokens.BOS))
            embeds[:, 1:] = model.model.multi_modal_projector(features)
            places = packing.Layout(IMAGE, 1 + IMAGE, ())
            mask = packing.mask(places, attention)[..., :-1, :-1]
            with torch.no_grad():
                states.append(model.model.language_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state)
        assert (not torch.equal(states[0][:, 1], states[1][:, 1])) == moves


def test_the_hook_builds_the_mask_that_training_used(image):
    model = build("bidirectional")
    batch = _read(tokens.processor(48, 8), image, "<image> r3 c2")
    with torch.no_grad(), bidirectional_images(model.model, model.model.language_model, tokens.IMAGE):
        hooked = model(**batch).logits[0, -1]
    packed = logits(model, image, ask("r3 c2"))[0]
    assert torch.allclose(hooked, packed, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(model(**batch).logits[0, -1], packed, atol=1e-4)


def test_causal_and_bidirectional_differ_between_image_tokens_only():
    places = packing.Layout(4, 5, (2, 3))
    causal, both = packing.allowed(places, "causal"), packing.allowed(places, "bidirectional")
    changed = (causal != both).nonzero().tolist()
    assert changed == [[row, column] for row in range(1, 5) for column in range(row + 1, 5)]
    assert both.any(1).all()
    assert not both[5:7, 7:10].any()
    assert not both[7:10, 5:7].any()


def test_labels_stand_behind_the_token_that_predicts_them():
    asked = [Question("position", "r1 c1", "sky"), Question("any", "any sofa", "no")]
    ids, labels, where = packing.pack([asked], 2)
    words = list(tokens.VOCABULARY)
    assert [words[i] for i in ids[0]] == [
        "<s>", "<image>", "<image>", "r1", "c1", "any", "sofa", "no", "<pad>",
    ]  # fmt: skip
    told = {i: words[label] for i, label in enumerate(labels[0].tolist()) if label != packing.IGNORED}
    assert told == {5: "sky", 7: "no", 8: "</s>"}
    assert where.tolist() == [[5, 7]]
    assert packing.positions(packing.layout(2, asked)).tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 3]]


def test_pixels_are_what_the_processor_makes(image):
    batch = _read(tokens.processor(48, 8), image, "<image> r3 c9")
    assert torch.allclose(batch["pixel_values"], tokens.pixels(image), atol=1e-5)
    words = list(tokens.VOCABULARY)
    assert [words[i] for i in batch["input_ids"][0]] == ["<s>", *["<image>"] * IMAGE, "r3", "c9"]


def _read(processor: Any, image, text: str):
    return processor(images=_pil(image), text=text, return_tensors="pt")


def _pil(image):
    return Image.fromarray(image[0])
