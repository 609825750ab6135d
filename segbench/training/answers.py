"""Do the models answer questions about pictures they have never seen?"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from segbench.attention import bidirectional_images
from segbench.data.scenes import Question, questions
from segbench.training import packing, tokens
from segbench.training.pool import Pool

STREAM = 5  # of random numbers, beside those of training


@dataclass(frozen=True)
class Accuracy:
    """Fraction of questions answered right, and what chance gives."""

    kind: Literal["position", "any"]
    accuracy: float
    chance: float  # best single answer for `any`; the commonest class for `position`
    questions: int
    images: int


@torch.no_grad()
def measure(model: LlavaForConditionalGeneration, unseen: Pool, positions: int = 24, closed: int = 8) -> list[Accuracy]:
    """Accuracy by kind of question, all questions of a picture in one packed sequence."""
    random = np.random.default_rng([0, STREAM])
    asked = [questions(counts, random, positions, closed) for counts in unseen.counts]
    said = [
        row for i in range(0, len(asked), 20) for row in packed(model, unseen.images[i : i + 20], asked[i : i + 20])
    ]
    right = np.array([[q.answer for q in row] for row in asked]) == np.array(said)
    kinds = np.array([[q.kind for q in row] for row in asked])
    truth = np.array([[q.answer for q in row] for row in asked])
    result = []
    for kind in ("position", "any"):
        these = kinds == kind
        _, times = np.unique(truth[these], return_counts=True)
        chance = round(float(times.max() / times.sum()), 4)
        result.append(Accuracy(kind, round(float(right[these].mean()), 4), chance, int(these.sum()), len(asked)))
    return result


@torch.no_grad()
def packed(
    model: LlavaForConditionalGeneration, images: np.ndarray, asked: Sequence[Sequence[Question]]
) -> list[list[str]]:
    """The likeliest answer to every question; the questions of a picture share its tokens and do not see each other."""
    image = model.config.image_seq_length
    ids, _, answers = packing.pack(asked, image)
    places = packing.layout(image, asked[0])
    logits = model(
        input_ids=ids,
        pixel_values=tokens.pixels(images),
        attention_mask=packing.mask(places, model.config.image_attention).expand(len(ids), -1, -1, -1),
        position_ids=packing.positions(places).expand(len(ids), -1),
        use_cache=False,
    ).logits
    words = list(tokens.VOCABULARY)
    best = logits.argmax(-1).gather(1, answers - 1)
    return [[words[i] for i in row] for row in best.tolist()]


@torch.no_grad()
def generated(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, image: Image.Image, question: str
) -> str:
    """The answer of `generate()` to one question through the real processor."""
    batch = processor(images=image, text=f"<image> {question}", return_tensors="pt")  # type: ignore[call-arg]
    outer, text = model.model, model.model.language_model
    bidirectional = model.config.image_attention == "bidirectional"
    with bidirectional_images(outer, text, tokens.IMAGE) if bidirectional else nullcontext():
        ids = model.generate(**batch, max_new_tokens=2, do_sample=False)  # type: ignore[misc]
    return processor.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()
