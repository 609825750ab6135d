"""The vision encoder: CLIP's own loss on pictures and captions that leave words out."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from segbench.data.scenes import CLASSES, caption
from segbench.training import tokens
from segbench.training.fit import Batch, Curve, fit
from segbench.training.pool import Pool
from segbench.training.recipe import Encoder, Recipe

TEXT_LENGTH = 2 + 3 * (1 + len(CLASSES))  # <s>, three places with at most all classes, </s>


def vision_config(recipe: Encoder) -> CLIPVisionConfig:
    """The configuration of the vision tower."""
    return CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=recipe.feedforward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        image_size=recipe.size,
        patch_size=recipe.patch,
        projection_dim=recipe.projection,
    )


def train(recipe: Recipe, seen: Pool, report: Callable[[str], None], scratch: Path) -> tuple[CLIPModel, Curve]:
    """A CLIP model trained from nothing, and its curve (loss in nats; log of the batch is chance)."""
    model = build(recipe.encoder, recipe.seed)

    def make(number: int) -> Batch:
        random = np.random.default_rng([recipe.seed, 1, number])
        chosen = np.sort(random.choice(len(seen), recipe.encoder.batch, replace=False))
        texts = [caption(seen.counts[i], random, recipe.encoder.drop) for i in chosen]
        return {"pixel_values": tokens.pixels(seen.images[chosen]), **captions(texts), "return_loss": True}

    everything = [(recipe.encoder.learning_rate, list(model.parameters()))]
    curve = fit(model, make, recipe.encoder, everything, precision=recipe.precision, report=report, scratch=scratch)
    return model, curve


def build(recipe: Encoder, seed: int) -> CLIPModel:
    """An untrained CLIP model. Its weights are drawn by fan-in: the usual 0.02 is too small at this width."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokens.VOCABULARY),
        hidden_size=recipe.text_width,
        intermediate_size=2 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=recipe.projection,
        pad_token_id=tokens.PAD,
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.EOS,
    )
    config = CLIPConfig(text_config=text, vision_config=vision_config(recipe), projection_dim=recipe.projection)
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # on a CPU faster to train than sdpa
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embedding" not in name:
                nn.init.normal_(weight, std=0.6 / math.sqrt(weight.shape[1]))
        vision = model.vision_model.embeddings
        nn.init.normal_(vision.patch_embedding.weight, std=1 / math.sqrt(vision.patch_embedding.weight[0].numel()))
        vision.position_embedding.weight[1:] = 0.5 * _waves(recipe.size // recipe.patch, recipe.width)
        nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.5)
        nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.1)
    return model


def captions(texts: list[str]) -> Batch:
    """input_ids and attention_mask of captions, padded on the right; few lengths, because each new one costs time."""
    rows = [[tokens.BOS, *tokens.ids(text), tokens.EOS] for text in texts]
    length = min(TEXT_LENGTH, 8 * math.ceil(max(map(len, rows)) / 8))
    ids = torch.tensor([row + [tokens.PAD] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != tokens.PAD).long()}


def _waves(grid: int, width: int) -> Float[Tensor, "t d"]:
    """Sines and cosines of the row in the first half, of the column in the second."""
    phase = torch.arange(grid)[:, None] / 100 ** (torch.arange(width // 4) / (width // 4))
    line = torch.cat([phase.sin(), phase.cos()], 1)
    rows, columns = line[:, None].expand(grid, grid, -1), line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], -1).reshape(grid * grid, width)
