"""Reading one loaded model: image features at every site, under any attention.

`encode` runs the vision side once and keeps the call that the outer model makes to its text model; `decode` replays
that call under any attention, as deep as the sites ask for. The language head is never computed. A family is a module
with `load(spec, device) -> Adapter`: its module table, and its `Layout`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin

from segbench import registry
from segbench.adapters.embedder import Embedded, Embedder, depth
from segbench.adapters.layout import Layout, Placement, Size
from segbench.attention import EDITABLE, bidirectional_images, bidirectional_mask, decoder_layers, knockout
from segbench.errors import ModelError, SpecError
from segbench.specs import ModelSpec
from segbench.types import GridMap, Sample, Site

Features = dict[Site, Float[Tensor, "b t d"]]  # t = h*w patches in raster order, whatever else stands in the sequence

ENCODER, ADAPTER, FINAL = Site("encoder"), Site("adapter"), Site("llm", "norm")
STREAMS = ("key_pre", "key", "value")  # what attention makes of a block's input, in the order of computation


@dataclass(frozen=True)
class Batch:
    """Samples as a model wants them; all sequences are laid out alike, so there is no padding."""

    inputs: Mapping[str, Tensor]
    image_at: Int[Tensor, "b t"]  # sequence position of every patch, raster order
    grids: tuple[GridMap, ...]
    masks: tuple[UInt8[np.ndarray, "_ _"], ...]  # ground truth, untouched
    consumed: tuple[Int[np.ndarray, "t m"], ...]  # of each tensor the projector consumes, an image's rows per patch


@dataclass(frozen=True)
class Encoded:
    """What is known of a batch before the LLM runs."""

    encoder: Float[Tensor, "b t d"]  # what the projector consumes, all rows of a patch side by side
    call: Mapping[str, Any]  # the keyword arguments that the outer model hands to the text model
    image: Bool[Tensor, "b s"]  # every image token, also those without a place in the image (registers, newlines)
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


@dataclass(frozen=True)
class Declared:
    """What a family says about its image tokens, and what cannot be done with them."""

    registers: int = 0  # image tokens in front of the patches that have no place in the image
    newlines: bool = False  # image tokens that end a row of tiles
    no_knockout: str = ""  # why attention cannot be edited, if it cannot


class Adapter:
    """One loaded model. `selftests` holds what the self-tests measured when it was loaded."""

    selftests: Mapping[str, float]
    widths: Mapping[Site, int]  # d of every site, known once `load` has run the model

    def __init__(self, embedder: Embedder, layout: Layout, declared: Declared | None = None) -> None:
        self.embedder, self.layout, self.declared = embedder, layout, declared or Declared()
        self.parts = embedder.parts
        self.depth = len(decoder_layers(self.parts.text))
        self.selftests, self.widths = {}, {}

    @property
    def spec(self) -> ModelSpec:
        return self.embedder.checkpoint.spec

    @property
    def device(self) -> torch.device:
        return self.embedder.checkpoint.device

    @property
    def model(self) -> PreTrainedModel:
        return self.embedder.checkpoint.model

    @property
    def processor(self) -> ProcessorMixin:
        return self.embedder.checkpoint.processor

    def sites(self) -> tuple[Site, ...]:
        """Every residual once, in the order of computation; `llm.0` is the adapter."""
        return (ENCODER, ADAPTER, *(Site("llm", layer) for layer in range(1, self.depth + 1)), FINAL)

    def known_sites(self) -> tuple[Site, ...]:
        """All that can be read: the residuals, and keys and values of every block, in the order of computation."""
        kinds = self.parts.text.config.to_dict().get("layer_types") or [EDITABLE[0]] * self.depth
        attending = [n for n in range(self.depth) if kinds[n] in EDITABLE]  # linear attention has no keys
        streams = {n: [Site("llm", n, stream) for stream in STREAMS] for n in attending}
        residuals = [Site("llm", layer) for layer in range(self.depth + 1)]
        llm = [site for n, residual in enumerate(residuals) for site in (residual, *streams.get(n, ()))]
        return (ENCODER, ADAPTER, *llm, FINAL)

    def placement(self, image: Size) -> Placement:
        """Where the patches of an image of H x W pixels are, before it is looked at."""
        return self.layout.place(self.layout.framing.size(image))

    def grid_map(self, image: Size) -> GridMap:
        """Where the patches lie on an image of H x W pixels."""
        return self.layout.grid_map(image)

    @property
    def patch_pixels(self) -> float:
        """Model pixels along a patch's edge: what the resolution of the model is, where an image has one grid."""
        return self.layout.patch_pixels

    def attention(self) -> AbstractContextManager[None]:
        """The spec's attention for calls of the transformers model itself, `generate()` among them."""
        if self.spec.attention == "bidirectional":
            return bidirectional_images(self.parts.outer, self.parts.text, self.parts.image_token_id)
        return nullcontext()

    def prepare(self, samples: Sequence[Sample]) -> Batch:
        """The samples as one batch; ModelError if they are laid out differently, or not as the layout says."""
        batches = list(self.batches(samples))
        if len(batches) != 1:
            raise ModelError(
                f"{self.spec.name}: these {len(samples)} images make {len(batches)} batches, as their grids differ"
            )
        return batches[0]

    def batches(self, samples: Sequence[Sample]) -> Iterator[Batch]:
        """The samples in their order; neighbours that are laid out alike share a batch."""
        gathered: list[_Prepared] = []
        for sample in samples:
            one = self._prepared(sample)
            if gathered and one.shapes != gathered[-1].shapes:
                yield _together(gathered)
                gathered = []
            gathered.append(one)
        yield _together(gathered)

    def encode(self, batch: Batch) -> Encoded:
        """Vision, projector and the merge into the token embeddings; the LLM does not run."""
        embedded = self.embedder.embed(batch.inputs)
        image = (batch.inputs["input_ids"] == self.parts.image_token_id).to(self.device)
        encoder = self._patches(embedded, batch)
        return Encoded(encoder, embedded.call, image, batch.image_at.to(self.device))

    def decode(
        self,
        encoded: Encoded,
        sites: Sequence[Site],
        blocked: Bool[Tensor, "b t"] | None = None,
        layers: range | None = None,
    ) -> Features:
        """The wanted sites of an encoded batch; the LLM runs no deeper than they need, and nothing else is kept.

        `blocked` patches are knocked out (Eq. 1) in the LLM blocks of `layers`, counted from 0 (None: all of them): a
        knockout in block L is first seen at `llm.(L+1)`. Keys and values are [b, t, heads * d] of the heads that have
        their own.
        """
        if strange := [site for site in sites if site not in self.known_sites()]:
            there = f"encoder, adapter, llm.1 to llm.{self.depth}, llm.norm, llm.0.key to llm.{self.depth - 1}.value"
            raise SpecError(f"{self.spec.name} has no site {strange[0]}; it has {there}")
        wanted = {Site("llm", 0) if site == ADAPTER else site for site in sites} - {ENCODER}
        taken: Features = {}
        if wanted:
            self._run(encoded, wanted, taken, blocked, layers)
        taken |= {ENCODER: encoded.encoder} | ({ADAPTER: taken[Site("llm", 0)]} if ADAPTER in sites else {})
        return {site: taken[site] for site in sites}

    def replay(
        self, encoded: Encoded, wanted: Collection[Site], show: Callable[[Site, Float[Tensor, "b s d"]], None]
    ) -> None:
        """Run the text model as deep as the wanted sites of the LLM need, and show each as it passes, all positions."""
        text, norm = self.parts.text, self.parts.norm

        def take(site: Site, states: Float[Tensor, "b s d"]) -> None:
            if site in wanted:
                show(site, states)

        def entering(site: Site) -> Any:
            return lambda _, args, kwargs: take(site, args[0] if args else kwargs["hidden_states"])

        hidden = {site for site in wanted if site.stream == "hidden" and site != FINAL}
        deepest = self.depth if FINAL in wanted else max(_needed(site) for site in wanted)
        call = dict(encoded.call) | {"past_key_values": None, "use_cache": False}
        if self.spec.attention == "bidirectional":
            embeddings, real = call["inputs_embeds"], call.get("attention_mask")
            call["attention_mask"] = bidirectional_mask(text, embeddings, real, encoded.image)
        if any(site.stream in ("key", "value") for site in wanted):
            call |= {"past_key_values": _Tap(text, take), "use_cache": True}
        with torch.no_grad(), ExitStack() as stack:
            blocks = decoder_layers(text)
            stack.enter_context(depth(text, deepest))
            for site in hidden:
                place = norm if site.layer == deepest else blocks[int(site.layer)]
                stack.callback(place.register_forward_pre_hook(entering(site), with_kwargs=True).remove)
            for site in (one for one in wanted if one.stream == "key_pre"):
                stack.callback(_keys(blocks[int(site.layer)], site, take))
            if FINAL in wanted:
                hook = norm.register_forward_hook(lambda _, args, out: take(FINAL, out))  # type: ignore[arg-type]
                stack.callback(hook.remove)
            text(**call)

    def read(self, batch: Batch, sites: Sequence[Site]) -> Features:
        """All wanted sites from one forward pass."""
        return self.decode(self.encode(batch), sites)

    def _prepared(self, sample: Sample) -> "_Prepared":
        """One sample through the checkpoint's own processor; ModelError if its tokens are not as the layout says."""
        image = sample.image.convert("RGB")
        size = (image.height, image.width)
        placement = self.placement(size)
        inputs = self.embedder.inputs(self.layout.framing.picture(image), self.layout.arguments)
        at = (inputs["input_ids"][0] == self.parts.image_token_id).nonzero()[:, 0]
        if len(at) != placement.tokens:
            h, w = placement.grid
            raise ModelError(
                f"{self.spec.name}: {type(self.processor).__name__} makes {len(at)} image tokens of a picture of "
                f"{size[0]} x {size[1]} pixels, expected {placement.tokens} with {h} x {w} patches among them; check "
                "its patch_size, num_additional_image_tokens and vision_feature_select_strategy"
            )
        image_at = at[torch.from_numpy(placement.patches)][None]
        grid_map = self.layout.framing.grid_map(placement, size)
        return _Prepared(Batch(inputs, image_at, (grid_map,), (sample.mask,), placement.consumed))

    def _patches(self, embedded: Embedded, batch: Batch) -> Float[Tensor, "b t d"]:
        """What the projector consumes for every patch."""
        if len(embedded.consumed) != len(batch.consumed):
            got, expected = len(embedded.consumed), len(batch.consumed)
            raise ModelError(f"{self.spec.name}: the projector consumes {got} tensors, the layout knows {expected}")
        found = []
        for tensor, index in zip(embedded.consumed, batch.consumed, strict=True):
            rows = tensor.flatten(0, -2).unflatten(0, (len(batch.grids), -1))
            if index.max() >= rows.shape[1]:
                raise ModelError(
                    f"{self.spec.name}: the projector consumes {rows.shape[1]} rows of a picture, the layout reads row "
                    f"{index.max()}"
                )
            found.append(rows[:, torch.from_numpy(index).to(rows.device)].flatten(2))
        return torch.cat(found, -1)

    def _run(
        self,
        encoded: Encoded,
        wanted: set[Site],
        taken: Features,
        blocked: Bool[Tensor, "b t"] | None,
        layers: range | None,
    ) -> None:
        """Replay the text model and leave the image states of the wanted sites in `taken`."""
        rows = torch.arange(len(encoded.image_at), device=self.device)[:, None]

        def take(site: Site, states: Float[Tensor, "b s d"]) -> None:
            taken[site] = states[rows, encoded.image_at]

        with ExitStack() as stack:
            if blocked is not None:
                cut = self._in_sequence(encoded, blocked)
                stack.enter_context(knockout(self.parts.text, encoded.image, cut, layers))
            self.replay(encoded, wanted, take)

    def _in_sequence(self, encoded: Encoded, blocked: Bool[Tensor, "b t"]) -> Bool[Tensor, "b s"]:
        if blocked.shape != encoded.image_at.shape:
            raise ModelError(f"blocked patches are {list(blocked.shape)}, the batch has {list(encoded.image_at.shape)}")
        if self.declared.no_knockout:
            raise ModelError(f"{self.spec.name}: no knockout: {self.declared.no_knockout}")
        return torch.zeros_like(encoded.image).scatter(1, encoded.image_at, blocked.to(self.device))


def load(spec: ModelSpec, device: str) -> Adapter:
    """The adapter that the spec names, with its weights on the device, self-tests passed.

    MissingInput if the weights are not there; ModelError if they do not fit the adapter or a self-test fails.
    """
    from segbench.adapters import _selftest  # which imports this module

    adapter: Adapter = registry.module("adapters", spec.adapter).load(spec, device)
    _selftest.run(adapter)
    return adapter


@dataclass(frozen=True)
class _Prepared:
    """A batch of one."""

    batch: Batch
    shapes: tuple[Any, ...] = field(init=False)  # equal for samples that can share a batch

    def __post_init__(self) -> None:
        inputs = sorted((name, tuple(tensor.shape)) for name, tensor in self.batch.inputs.items())
        consumed = [(one.shape, one.tobytes()) for one in self.batch.consumed]  # a batch has one index for all
        object.__setattr__(self, "shapes", (*inputs, *consumed, self.batch.grids[0].grid))


def _together(ones: Sequence[_Prepared]) -> Batch:
    """Batches of one, side by side: whatever a processor makes of an image, it makes along the first axis."""
    batches = [one.batch for one in ones]
    first = batches[0]
    inputs = {name: torch.cat([one.inputs[name] for one in batches]) for name in first.inputs}
    grids = tuple(grid_map for one in batches for grid_map in one.grids)
    masks = tuple(mask for one in batches for mask in one.masks)
    return Batch(inputs, torch.cat([one.image_at for one in batches]), grids, masks, first.consumed)


class _Tap(DynamicCache):
    """A cache that keeps nothing: it shows the keys (behind the rotary embedding) and values of every block."""

    def __init__(self, text: PreTrainedModel, take: Any) -> None:
        super().__init__(config=text.config)
        self._take = take

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Both are [b, heads, s, d]."""
        self._take(Site("llm", layer_idx, "key"), key_states.transpose(1, 2).flatten(2))
        self._take(Site("llm", layer_idx, "value"), value_states.transpose(1, 2).flatten(2))
        return key_states, value_states


def _keys(block: nn.Module, site: Site, take: Any) -> Any:
    """Show the keys of a block before the rotary embedding; what ends that.

    They are what the key projection gives, or its norm where there is one. SpecError for a block without a projection
    of its own for keys.
    """
    for module in block.modules():
        children = dict(module.named_children())
        if "k_proj" in children:
            width = int(children["k_proj"].weight.shape[0])  # type: ignore[arg-type]
            source = children.get("k_norm", children["k_proj"])
            return source.register_forward_hook(lambda *shown, w=width: take(site, _side_by_side(shown[2], w))).remove
    raise SpecError(f"{site}: {type(block).__name__} has no key projection of its own, so these keys are never made")


def _side_by_side(keys: Tensor, width: int) -> Float[Tensor, "b s d"]:
    """Keys as [b, s, width], from [b, s, heads, d] or [b, heads, s, d]."""
    if keys.ndim == 4:
        keys = keys if keys.shape[2] * keys.shape[3] == width else keys.transpose(1, 2)
        keys = keys.flatten(2)
    return keys


def _needed(site: Site) -> int:
    """How many blocks have to run for a site of the LLM."""
    return int(site.layer) + (site.stream != "hidden")


def _taken(name: str, value: Any, rows: int, index: Int[Tensor, " n"]) -> Any:
    """One keyword argument of the text model for other rows of the batch.

    Masks come in dictionaries, one per kind of attention; features of deepstack in lists, all images in one axis;
    three-axis rotary positions have the batch second.
    """
    if isinstance(value, dict):
        return {key: _taken(name, one, rows, index) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_taken(name, one, rows, index) for one in value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if name == "position_ids" and value.ndim == 3:
        return value if value.shape[1] == 1 and rows > 1 else value[:, index]
    if value.shape[0] == 1 and rows > 1:
        return value
    if value.shape[0] == rows:
        return value[index]
    if value.ndim == 2 and value.shape[0] % rows == 0:
        return value.unflatten(0, (rows, -1))[index].flatten(0, 1)
    raise ModelError(f"cannot take rows of {name!r} with shape {list(value.shape)} from a batch of {rows}")
