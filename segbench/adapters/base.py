"""Reading one model family: where its image tokens, projector and LLM layers are, and how an image gets there.

`encode` runs the vision side once and keeps the call that the outer model makes to its text model; `decode` replays
that call under any attention, as deep as the sites ask for. The language head is never computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import PreTrainedModel

from segbench import registry
from segbench.attention import bidirectional_images, bidirectional_mask, decoder_layers, knockout
from segbench.errors import ModelError, SpecError
from segbench.specs import ModelSpec
from segbench.types import GridMap, Sample, Site

Features = dict[Site, Float[Tensor, "b t d"]]  # t = h*w patches in raster order, whatever else stands in the sequence

ENCODER, ADAPTER, FINAL = Site("encoder"), Site("adapter"), Site("llm", "norm")


@dataclass(frozen=True)
class Parts:
    """The module table of a loaded model."""

    outer: PreTrainedModel  # merges image features into the token embeddings and calls `text`; has no language head
    text: PreTrainedModel  # has `layers`
    norm: nn.Module  # the final one, after the last layer
    projector: nn.Module
    image_token_id: int


@dataclass(frozen=True)
class Batch:
    """Samples as a model wants them; all sequences have the same length, so there is no padding."""

    inputs: Mapping[str, Tensor]
    image_at: Int[Tensor, "b t"]  # sequence position of every patch, raster order
    grids: tuple[GridMap, ...]
    masks: tuple[UInt8[np.ndarray, "_ _"], ...]  # ground truth, untouched


@dataclass(frozen=True)
class Encoded:
    """What is known of a batch before the LLM runs."""

    encoder: Float[Tensor, "b t d"]  # what the projector consumes
    call: Mapping[str, Any]  # the keyword arguments that the outer model hands to the text model
    image: Bool[Tensor, "b s"]  # every image token, also those without a place in the image (registers)
    image_at: Int[Tensor, "b t"]

    def take(self, rows: Sequence[int]) -> "Encoded":
        """These images of the batch, in this order and as often as they are named."""
        index = torch.as_tensor(rows, device=self.image.device)
        call = {name: _taken(name, value, len(self.image), index) for name, value in self.call.items()}
        return Encoded(self.encoder[index], call, self.image[index], self.image_at[index])

    def repeat(self, copies: int) -> "Encoded":
        """The batch `copies` times over, copy by copy, so that several attention conditions are one batch."""
        return self.take([*range(len(self.image))] * copies)

    def with_embeddings(self, embeddings: Float[Tensor, "b s d"]) -> "Encoded":
        """The same call with other vectors entering the LLM."""
        return replace(self, call={**self.call, "inputs_embeds": embeddings})


class Adapter(ABC):
    """One loaded model. `selftests` holds what the attention self-tests measured when it was loaded."""

    selftests: Mapping[str, float]

    def __init__(self, spec: ModelSpec, device: torch.device, parts: Parts) -> None:
        self.spec, self.device, self.parts = spec, device, parts
        self.depth = len(decoder_layers(parts.text))
        self.selftests = {}

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w) patches of every image."""

    @property
    @abstractmethod
    def widths(self) -> Mapping[Site, int]:
        """Feature width d of every site."""

    @abstractmethod
    def prepare(self, samples: Sequence[Sample]) -> Batch:
        """Run the checkpoint's own processor. ModelError if the tokens do not fit the grid."""

    @abstractmethod
    def patches(self, consumed: tuple[Tensor, ...]) -> Float[Tensor, "b t d"]:
        """The encoder site in what the projector was called with: patches only, raster order."""

    def sites(self) -> tuple[Site, ...]:
        """Every site once, in the order of computation; `llm.0` is the adapter."""
        return (ENCODER, ADAPTER, *(Site("llm", layer) for layer in range(1, self.depth + 1)), FINAL)

    def attention(self) -> AbstractContextManager[None]:
        """The spec's attention for calls of the transformers model itself, `generate()` among them."""
        if self.spec.attention == "causal":
            return nullcontext()
        return bidirectional_images(self.parts.outer, self.parts.text, self.parts.image_token_id)

    def encode(self, batch: Batch) -> Encoded:
        """Vision, projector and the merge into the token embeddings; the LLM does not run."""
        inputs = {name: tensor.to(self.device) for name, tensor in batch.inputs.items()}
        consumed: list[tuple[Tensor, ...]] = []
        calls: list[dict[str, Any]] = []
        outer, text, projector = self.parts.outer, self.parts.text, self.parts.projector
        hooks = [
            projector.register_forward_pre_hook(lambda _, args: consumed.append(args)),
            text.register_forward_pre_hook(lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True),
        ]
        try:
            with torch.no_grad(), _depth(text, 0):  # not inference_mode: probes are trained on what this returns
                outer(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        if len(consumed) != 1 or len(calls) != 1:
            times = f"{len(consumed)} and {len(calls)}"
            raise ModelError(f"{self.spec.name}: projector and text model ran {times} times, expected once each")
        image = inputs["input_ids"] == self.parts.image_token_id
        return Encoded(self.patches(consumed[0]), calls[0], image, batch.image_at.to(self.device))

    def decode(
        self,
        encoded: Encoded,
        sites: Sequence[Site],
        blocked: Bool[Tensor, "b t"] | None = None,
        layers: range | None = None,
    ) -> Features:
        """The wanted sites of an encoded batch; the LLM runs no deeper than they need.

        `blocked` patches are knocked out (Eq. 1) in the LLM blocks of `layers`, counted from 0 (None: all of them): a
        knockout in block L is first seen at `llm.(L+1)`.
        """
        wanted = self._layers(sites)
        taken: dict[int | str, Float[Tensor, "b t d"]] = {}
        if wanted:
            self._run(encoded, wanted, taken, blocked, layers)
        return {site: encoded.encoder if site == ENCODER else taken[site.layer] for site in sites}

    def read(self, batch: Batch, sites: Sequence[Site]) -> Features:
        """All wanted sites from one forward pass."""
        return self.decode(self.encode(batch), sites)

    def _layers(self, sites: Sequence[Site]) -> set[int | str]:
        """LLM depths behind the wanted sites; SpecError for a site that this model does not have."""
        known = {*self.sites(), Site("llm", 0)}
        for site in sites:
            if site not in known:
                there = f"encoder, adapter, llm.1 to llm.{self.depth}, llm.norm"
                raise SpecError(f"{self.spec.name} has no site {site}; it has {there}")
        return {site.layer for site in sites if site != ENCODER}

    def _run(
        self,
        encoded: Encoded,
        wanted: set[int | str],
        taken: dict[int | str, Float[Tensor, "b t d"]],
        blocked: Bool[Tensor, "b t"] | None,
        layers: range | None,
    ) -> None:
        """Replay the text model and leave the image states of the wanted depths in `taken`."""
        text, norm = self.parts.text, self.parts.norm
        rows = torch.arange(len(encoded.image_at), device=self.device)[:, None]

        def take(name: int | str, hidden: Float[Tensor, "b s d"]) -> None:
            taken[name] = hidden[rows, encoded.image_at]

        def entering(name: int) -> Any:
            return lambda _, args, kwargs: take(name, args[0] if args else kwargs["hidden_states"])

        deepest = self.depth if "norm" in wanted else max(int(name) for name in wanted)
        call = dict(encoded.call)
        if self.spec.attention == "bidirectional":
            embeddings, real = call["inputs_embeds"], call["attention_mask"]
            call["attention_mask"] = bidirectional_mask(text, embeddings, real, encoded.image)
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(_depth(text, deepest))
            for name in wanted - {"norm"}:
                place = norm if name == deepest else decoder_layers(text)[int(name)]
                stack.callback(place.register_forward_pre_hook(entering(int(name)), with_kwargs=True).remove)
            if "norm" in wanted:
                hook = norm.register_forward_hook(lambda _, args, out: take("norm", out))  # type: ignore[arg-type]
                stack.callback(hook.remove)
            if blocked is not None:
                stack.enter_context(knockout(text, encoded.image, self._in_sequence(encoded, blocked), layers))
            text(**call)

    def _in_sequence(self, encoded: Encoded, blocked: Bool[Tensor, "b t"]) -> Bool[Tensor, "b s"]:
        if blocked.shape != encoded.image_at.shape:
            raise ModelError(f"blocked patches are {list(blocked.shape)}, the batch has {list(encoded.image_at.shape)}")
        return torch.zeros_like(encoded.image).scatter(1, encoded.image_at, blocked.to(self.device))


def load(spec: ModelSpec, device: str) -> Adapter:
    """The adapter that the spec names, with its weights on the device, self-tests passed.

    MissingInput if the weights are not there; ModelError if they do not fit the adapter or a self-test fails.
    """
    from segbench.adapters import _selftest  # which imports this module

    adapter = registry.module("adapters", spec.adapter).load(spec, device)
    adapter.selftests = adapter.selftests or _selftest.run(adapter)
    return adapter


@contextmanager
def _depth(text: PreTrainedModel, layers: int) -> Iterator[None]:
    """The text model with its first blocks only: exact early exit, without an exception through anybody's hooks."""
    full = decoder_layers(text)
    text.layers = full[:layers]
    try:
        yield
    finally:
        text.layers = full


def _taken(name: str, value: Any, rows: int, index: Int[Tensor, " n"]) -> Any:
    """One keyword argument of the text model for other rows of the batch."""
    if not isinstance(value, Tensor) or value.ndim == 0 or (value.shape[0] == 1 and rows > 1):
        return value
    if value.shape[0] != rows:
        raise ModelError(f"cannot take rows of {name!r} with shape {list(value.shape)} from a batch of {rows}")
    return value[index]
