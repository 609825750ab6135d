"""The language model before it has seen a picture: facts about cells, and questions about those facts."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from segbench.data.scenes import CLASSES, COLUMNS, GRID, ROWS
from segbench.training import packing, tokens
from segbench.training.fit import Batch, Curve, fit
from segbench.training.pool import Pool
from segbench.training.recipe import Language, Recipe

_ROW, _COLUMN, _CLASS = (tokens.VOCABULARY[words[0]] for words in (ROWS, COLUMNS, CLASSES))  # ids run on from these


def text_config(recipe: Language) -> LlamaConfig:
    """The configuration of the LLM."""
    return LlamaConfig(
        vocab_size=len(tokens.VOCABULARY),
        hidden_size=recipe.width,
        intermediate_size=recipe.feedforward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokens.PAD,
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.EOS,
    )


def initialise(model: nn.Module) -> None:
    """Draw the weights of a Llama by fan-in, what is added to the residual smaller: 0.02 is too small at this width."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim != 2:
                continue
            last = name.split(".")[-2]
            scale = {"o_proj": 0.3, "down_proj": 0.3, "lm_head": 0.5}.get(last, 0.8)
            nn.init.normal_(weight, std=0.5 if last == "embed_tokens" else scale / math.sqrt(weight.shape[1]))


def build(recipe: Language, seed: int) -> LlamaForCausalLM:
    """An untrained LLM."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(text_config(recipe))
    initialise(model)
    model.set_attn_implementation("eager")  # on a CPU faster to train than sdpa with a mask
    return model


def train(recipe: Recipe, seen: Pool, report: Callable[[str], None], scratch: Path) -> tuple[LlamaForCausalLM, Curve]:
    """An LLM trained on text alone, and its curve. It has learned the words and to look things up.

    A text is `r3 c9 sky` for `facts` random cells of one picture in random order, then `questions` of the form `r3 c9`,
    each about one of the facts and blind to the other questions. Accuracy is over the words of facts (which can only be
    guessed from each other) and of answers together.
    """
    spec = recipe.language
    model = build(spec, recipe.seed)
    places = packing.Layout(0, 1 + 3 * spec.facts, (2,) * spec.questions)
    mask, positions = packing.mask(places, "causal"), packing.positions(places)
    fact_word = torch.arange(3, 1 + 3 * spec.facts, 3)
    answer = torch.tensor(places.starts()) + 2

    def make(number: int) -> Batch:
        random = np.random.default_rng([recipe.seed, 2, number])
        chosen = np.sort(random.integers(len(seen), size=spec.batch))
        words = torch.from_numpy(seen.counts[chosen].reshape(spec.batch, GRID * GRID, -1).argmax(-1)) + _CLASS
        cells = torch.from_numpy(random.random((spec.batch, GRID * GRID)).argsort(1)[:, : spec.facts])
        asked = torch.from_numpy(random.integers(spec.facts, size=(spec.batch, spec.questions)))
        ids = torch.full((spec.batch, places.length), tokens.PAD)
        labels = torch.full_like(ids, packing.IGNORED)
        facts = torch.stack([_ROW + cells // GRID, _COLUMN + cells % GRID, words.gather(1, cells)], -1)
        ids[:, 0], ids[:, 1 : places.prefix] = tokens.BOS, facts.flatten(1)
        about = cells.gather(1, asked)
        ids[:, places.prefix : -1] = torch.stack([_ROW + about // GRID, _COLUMN + about % GRID], -1).flatten(1)
        labels[:, fact_word], labels[:, answer] = facts[..., 2], words.gather(1, about)
        # An expanded mask costs nothing; Trainer would otherwise take its length of 1 for the batch's.
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask.expand(spec.batch, -1, -1, -1),
            "position_ids": positions.expand(spec.batch, -1),
        }

    everything = [(spec.learning_rate, list(model.parameters()))]
    curve = fit(model, make, spec, everything, precision=recipe.precision, report=report, scratch=scratch)
    return model, curve
