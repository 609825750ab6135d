"""The two stages of LLaVA-1.5 on stock transformers classes: the adapter alone, then adapter and LLM (paper A.1)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import CLIPModel, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from segbench.data.scenes import questions
from segbench.training import encoder, language, packing, tokens
from segbench.training.fit import Batch, Curve, Rates, fit
from segbench.training.pool import Pool
from segbench.training.recipe import Recipe, Stage

FIRST_STAGE, SECOND_STAGE = 3, 4  # streams of random numbers; 1 is the encoder's, 2 the language model's


def assemble(recipe: Recipe, eyes: CLIPModel, words: LlamaForCausalLM) -> LlavaForConditionalGeneration:
    """Put the vision tower and the LLM together with a new adapter; all three are copied."""
    beside: dict[str, Any] = {  # what a configuration keeps without declaring it
        "image_token_id": tokens.IMAGE,
        "pad_token_id": tokens.PAD,
        "bos_token_id": tokens.BOS,
        "eos_token_id": tokens.EOS,
        "image_attention": recipe.image_attention,
    }
    config = LlavaConfig(
        vision_config=encoder.vision_config(recipe.encoder),
        text_config=language.text_config(recipe.language),
        image_token_index=tokens.IMAGE,
        image_seq_length=image_tokens(recipe),
        vision_feature_layer=list(recipe.encoder.features),
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **beside,
    )
    torch.manual_seed(recipe.seed + 1)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
            else:
                nn.init.zeros_(weight)
    model.model.vision_tower.load_state_dict(eyes.vision_model.state_dict())
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.lm_head.load_state_dict(words.lm_head.state_dict())
    model.generation_config.pad_token_id = tokens.PAD
    model.generation_config.bos_token_id = tokens.BOS
    model.generation_config.eos_token_id = tokens.EOS
    model.set_attn_implementation("eager")  # takes the mask of packed questions, and trains fastest on a CPU
    return model


def image_tokens(recipe: Recipe) -> int:
    """Tokens of one picture."""
    return (recipe.encoder.size // recipe.encoder.patch) ** 2


def align(
    model: LlavaForConditionalGeneration, recipe: Recipe, seen: Pool, report: Callable[[str], None], scratch: Path
) -> Curve:
    """Stage 1: the adapter learns to speak to a frozen LLM."""
    rates = [(recipe.alignment.learning_rate, list(model.model.multi_modal_projector.parameters()))]
    return _stage(model, recipe, recipe.alignment, FIRST_STAGE, rates, seen, report, scratch)


def instruct(
    model: LlavaForConditionalGeneration, recipe: Recipe, seen: Pool, report: Callable[[str], None], scratch: Path
) -> Curve:
    """Stage 2: adapter and LLM learn together; the vision tower stays frozen.

    With the LLM's learning rate the adapter would become a classifier of its own and the drop at it would vanish.
    """
    stage = recipe.instruction
    adapter_rate = stage.adapter_learning_rate or stage.learning_rate
    rates = [
        (stage.learning_rate, [*model.model.language_model.parameters(), *model.lm_head.parameters()]),
        (adapter_rate, list(model.model.multi_modal_projector.parameters())),
    ]
    return _stage(model, recipe, stage, SECOND_STAGE, rates, seen, report, scratch)


def inputs(
    stage: Stage, seen: Pool, chosen: np.ndarray, random: np.random.Generator, image: int
) -> tuple[Batch, packing.Layout]:
    """One batch of packed questions without its mask, and the layout the mask follows from."""
    asked = [questions(seen.counts[i], random, stage.positions, stage.closed, stage.balanced) for i in chosen]
    ids, labels, _ = packing.pack(asked, image)
    return {"input_ids": ids, "labels": labels, "pixel_values": tokens.pixels(seen.images[chosen])}, packing.layout(
        image, asked[0]
    )


def _stage(
    model: LlavaForConditionalGeneration,
    recipe: Recipe,
    stage: Stage,
    stream: Literal[3, 4],
    rates: Rates,
    seen: Pool,
    report: Callable[[str], None],
    scratch: Path,
) -> Curve:
    image = image_tokens(recipe)
    masks: dict[packing.Layout, torch.Tensor] = {}

    def make(number: int) -> Batch:
        random = np.random.default_rng([recipe.seed, stream, number])
        chosen = np.sort(random.integers(len(seen), size=stage.batch))
        batch, places = inputs(stage, seen, chosen, random, image)
        if places not in masks:
            masks[places] = packing.mask(places, recipe.image_attention)
        # Expanding costs nothing; Trainer would otherwise take the mask's length of 1 for the batch's.
        batch["attention_mask"] = masks[places].expand(stage.batch, -1, -1, -1)
        batch["position_ids"] = packing.positions(places).expand(stage.batch, -1)
        return batch

    return fit(model, make, stage, rates, precision=recipe.precision, report=report, scratch=scratch)
