"""From a picture to what enters the LLM: the processor, the vision tower, the projector, and the merge into the text.

The LLM itself does not run. What the projector consumes and the call that the outer model makes to its text model are
taken where they pass by.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from segbench.adapters import prompt
from segbench.adapters.checkpoint import Checkpoint
from segbench.attention import decoder_layers
from segbench.errors import ModelError


@dataclass(frozen=True)
class Parts:
    """The module table of a loaded model."""

    outer: PreTrainedModel  # merges image features into the token embeddings and calls `text`; has no language head
    text: PreTrainedModel  # has `layers`
    norm: nn.Module  # the final one, after the last layer
    projector: nn.Module
    image_token_id: int


@dataclass(frozen=True)
class Embedded:
    """What passed by on the way into the LLM."""

    consumed: tuple[Float[Tensor, "..."], ...]  # floating tensors that the projector was called with
    call: Mapping[str, Any]  # the keyword arguments that the outer model handed to the text model


@dataclass(frozen=True)
class Embedder:
    """A checkpoint, its module table, and the two things one can do before the LLM."""

    checkpoint: Checkpoint
    parts: Parts

    @cached_property
    def text(self) -> str:
        """The prompt of every picture."""
        return prompt.text(self.checkpoint.spec, self.checkpoint.processor)

    def inputs(self, picture: Image.Image, arguments: Mapping[str, Any], whole: bool = False) -> dict[str, Tensor]:
        """What the processor makes of one picture, cut behind the last image token, which nothing later can change.

        With the `whole` prompt it is what the model would answer to.
        ModelError if the prompt comes out without an image token.
        """
        checkpoint = self.checkpoint
        extra: dict[str, Any] = {"images_kwargs": dict(arguments)} if arguments else {}
        start = checkpoint.processor.tokenizer.bos_token
        if start and self.text.startswith(start):  # a chat template wrote it already
            extra["text_kwargs"] = {"add_special_tokens": False}
        try:
            processor: Any = checkpoint.processor
            made = processor(text=[self.text], images=[picture], return_tensors="pt", **extra)
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ModelError(f"{checkpoint.spec.name}: {type(checkpoint.processor).__name__}: {error}") from error
        ids = made["input_ids"]
        image = (ids[0] == self.parts.image_token_id).nonzero()[:, 0]
        if not len(image):
            number = self.parts.image_token_id
            raise ModelError(f"{checkpoint.spec.name}: no token of the prompt has the model's image_token_id {number}")
        end, dtype = ids.shape[1] if whole else int(image[-1]) + 1, checkpoint.model.dtype
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        cut = {name: value[:, :end] if value.shape == ids.shape else value for name, value in tensors.items()}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in cut.items()}

    def embed(self, inputs: Mapping[str, Tensor]) -> Embedded:
        """Vision, projector and the merge into the token embeddings of what `inputs` made, or of several such."""
        device, spec = self.checkpoint.device, self.checkpoint.spec
        consumed: list[tuple[Tensor, ...]] = []
        calls: list[dict[str, Any]] = []
        outer, text = self.parts.outer, self.parts.text

        def projected(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
            features = tuple(one for one in given if one.is_floating_point() and one.ndim >= 2)
            if features:  # an embedding table of image tokens is also asked for numbered ones
                consumed.append(features)

        hooks = [
            self.parts.projector.register_forward_pre_hook(projected, with_kwargs=True),
            text.register_forward_pre_hook(lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True),
        ]
        try:
            with torch.no_grad(), depth(text, 0):  # not inference_mode: probes are trained on what this returns
                outer(**{name: tensor.to(device) for name, tensor in inputs.items()}, use_cache=False)
        except ValueError as error:  # transformers counts image tokens and features, and tells both
            raise ModelError(f"{spec.name}: {type(outer).__name__}: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        pictures = len(inputs["input_ids"])
        if len(consumed) not in (1, pictures) or len(calls) != 1:
            times = f"{len(consumed)} and {len(calls)}"
            raise ModelError(f"{spec.name}: projector and text model ran {times} times for {pictures} pictures")
        if calls[0].get("inputs_embeds") is None:
            raise ModelError(f"{spec.name}: {type(text).__name__} is not called with inputs_embeds; it cannot be read")
        return Embedded(tuple(torch.cat(ones) for ones in zip(*consumed, strict=True)), calls[0])


@contextmanager
def depth(text: PreTrainedModel, layers: int) -> Iterator[None]:
    """The text model with its first blocks only: exact early exit, without an exception through anybody's hooks."""
    full = decoder_layers(text)
    text.layers = full[:layers]
    try:
        yield
    finally:
        text.layers = full
