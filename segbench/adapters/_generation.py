"""Proofs that what is measured is what the model does when it answers: in generate(), and with its cache.

Reading runs the LLM once over a prompt that is cut behind the image. A cache that positions or masks are wrong with, or
a knockout that generate() does not keep to, would make answers those of another model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from segbench.adapters.base import FINAL, Adapter, Batch
from segbench.attention import knockout
from segbench.types import Sample

TOKENS = 4  # that are generated
SUFFIX = "token_type_ids"  # 0 for the prefix that sees all of itself in some families, 1 for what is behind it


def differences(adapter: Adapter, image: Image.Image) -> Iterator[tuple[str, float]]:
    """By name, as soon as they are known; both relative to the rms of what is compared.

    `generate`: logits of tokens that answer the whole prompt, with a cache, against one forward pass over prompt and
    tokens without one. `generate_knockout`: `llm.norm` of the patches under a knockout that is held while generate()
    reads the prompt, against the replay's; only where attention can be edited.
    """
    framing, arguments = adapter.layout.framing, adapter.layout.arguments
    whole = adapter.embedder.inputs(framing.picture(image.convert("RGB")), arguments, whole=True)
    yield "generate", _cached(adapter, _on(adapter, whole))
    if not adapter.declared.no_knockout:
        empty = np.zeros((image.height, image.width), np.uint8)
        yield "generate_knockout", _knocked_out(adapter, adapter.prepare([Sample("image", image, empty)]))


@torch.no_grad()
def _cached(adapter: Adapter, inputs: Mapping[str, Tensor]) -> float:
    with adapter.attention():
        made = _generate(adapter, inputs)
        logits = torch.stack(made.logits, 1).float()
        fillings = (0, 1) if SUFFIX in inputs else (0,)
        return min(_difference(logits, _recomputed(adapter, inputs, made.sequences, filling)) for filling in fillings)


def _recomputed(
    adapter: Adapter, inputs: Mapping[str, Tensor], ids: Tensor, suffix: int
) -> Float[Tensor, "b tokens words"]:
    """Logits of the tokens behind the prompt, from one forward pass over all of them without a cache."""
    model: Any = adapter.model
    before = inputs["input_ids"].shape
    longer = dict(inputs) | {"input_ids": ids}
    for name, tensor in inputs.items():
        if name != "input_ids" and tensor.shape == before:  # one value per token, of text from here on
            value = {"attention_mask": 1, SUFFIX: suffix}.get(name, 0)
            longer[name] = F.pad(tensor, (0, ids.shape[1] - before[1]), value=value)
    return model(**longer, use_cache=False).logits[:, before[1] - 1 : -1].float()


@torch.no_grad()
def _knocked_out(adapter: Adapter, batch: Batch) -> float:
    encoded = adapter.encode(batch)
    blocked = torch.zeros(encoded.image_at.shape, dtype=torch.bool, device=adapter.device)
    blocked[:, 1:-1:3] = True
    replayed = adapter.decode(encoded, [FINAL], blocked)[FINAL].float()
    sequence = torch.zeros_like(encoded.image).scatter(1, encoded.image_at, blocked)
    states: list[Tensor] = []  # of the prompt, then of every token

    def see(_: Any, args: Any, out: Tensor) -> None:
        states.append(out)

    hook = adapter.parts.norm.register_forward_hook(see)
    try:
        with adapter.attention(), knockout(adapter.parts.text, encoded.image, sequence):
            _generate(adapter, _on(adapter, batch.inputs))
    finally:
        hook.remove()
    rows = torch.arange(len(encoded.image_at), device=adapter.device)[:, None]
    return _difference(states[0][rows, encoded.image_at].float(), replayed)


def _generate(adapter: Adapter, inputs: Mapping[str, Tensor]) -> Any:
    """Greedy words with a cache; no special token, of which some would announce another image and some would end it."""
    model: Any = adapter.model
    tokenizer: Any = adapter.processor.tokenizer
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    config = GenerationConfig(
        max_new_tokens=TOKENS,
        do_sample=False,
        use_cache=True,
        suppress_tokens=sorted({adapter.parts.image_token_id, *tokenizer.all_special_ids, *added}),
        pad_token_id=tokenizer.pad_token_id or 0,
        output_logits=True,  # as they are before any token is suppressed
        return_dict_in_generate=True,
    )
    return model.generate(**inputs, generation_config=config)


def _on(adapter: Adapter, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(adapter.device) for name, tensor in inputs.items()}


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.square().mean().sqrt())
