"""Who may attend to whom: image tokens see each other both ways (paper Eq. 2), attention knockout (paper Eq. 1).

Everything is said as booleans, True where a query may attend to a key, and put into the back end's own form only at the
last moment: a boolean mask with eager attention would be added as a number and silently ignored. The model's code is
never copied: hooks hand its own decoder another mask, and leaving the context gives the model back as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers import Cache, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from segbench.errors import CellError, ModelError

MASKABLE = ("sdpa", "eager", "flex_attention")  # back ends that honour a mask of their own for every sample and layer
EDITABLE = ("full_attention", "sliding_attention", "chunked_attention")
MASKS = 4  # that the layers of one forward pass may share between them

Mask = Bool[Tensor, "_ _ q k"] | Float[Tensor, "_ _ q k"] | BlockMask | None
_Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a module


def image_bidirectional(image: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s s"]:
    """What Eq. (2) allows beyond the causal mask: every image token of a sample may attend to every other.

    All images of a sample form one set I, as the paper writes it.
    """
    return image[:, :, None] & image[:, None, :]


def knocked_out(rows: Bool[Tensor, "b s"], blocked: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s s"]:
    """What Eq. (1) forbids: no image token may attend to a blocked one, itself included; text rows stay as they are.

    `rows` are the image tokens, and those that would hand on to them what they read (`relaying`).
    """
    return rows[:, :, None] & blocked[:, None, :]


def decoder_layers(text: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a text model, in order."""
    return cast(nn.ModuleList, text.layers)


def require_maskable(text: PreTrainedModel, kinds: tuple[str, ...] = EDITABLE) -> None:
    """ModelError unless the attention of this text model can be told who may attend to whom.

    `kinds` are the kinds of layers that may be there: whatever is forbidden can be forbidden within a sliding window
    too, but what Eq. (2) allows would reach out of it.
    """
    implementation = text.config._attn_implementation
    if implementation not in MASKABLE:
        known = " or ".join(MASKABLE)
        raise ModelError(
            f"attention implementation {implementation!r} cannot honour a mask of image tokens; use {known}"
        )
    others = set(text.config.to_dict().get("layer_types") or ()) - set(kinds)
    if others:
        known = " and ".join(kinds)
        raise ModelError(f"{type(text).__name__} has {', '.join(sorted(others))}; only {known} can be edited here")


def bidirectional_mask(
    text: PreTrainedModel,
    embeddings: Float[Tensor, "b s d"],
    real: object,
    image: Bool[Tensor, "b s"],
    cache: Cache | None = None,
) -> Mask:
    """The mask of Eq. (2) in the form that the text model's back end takes.

    `real` is transformers' 2-D attention mask (0 = padding). ModelError if a finished mask was given in its place.
    """
    require_maskable(text, EDITABLE[:1])
    if real is not None and not (isinstance(real, Tensor) and real.ndim == 2):
        raise ModelError(
            f"what calls {type(text).__name__} has finished the attention mask already (a family that lets image "
            "tokens see each other anyway, or a static cache): Eq. (2) cannot be added; use `attention: native`"
        )
    return create_causal_mask(
        config=text.config,
        inputs_embeds=embeddings,
        attention_mask=real,
        past_key_values=cache,
        position_ids=None,  # with positions, and no 2-D mask, transformers would look for packed sequences
        block_sequence_ids=torch.where(image, 0, -1),
    )


@contextmanager
def bidirectional_images(outer: PreTrainedModel, text: PreTrainedModel, image_token_id: int) -> Iterator[None]:
    """All image tokens of a sample attend to each other (Eq. 2) in every forward, prefill and training step within.

    `outer` merges image features into the embeddings and calls `text`. Decoding steps hold text only and stay causal.
    ModelError for what cannot be honoured: image tokens that arrive on top of a filled cache, embeddings without ids.
    """
    require_maskable(text, EDITABLE[:1])
    found: list[Bool[Tensor, "b s"] | None] = [None]

    def find(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ModelError("bidirectional image attention needs input_ids: embeddings alone do not say what is image")
        found[0] = None
        image = ids == image_token_id
        if not bool(image.any()):
            return
        cache = kwargs.get("past_key_values")
        if cache is not None and int(cache.get_seq_length()) > 0:
            if ids.shape[1] == 1 and kwargs.get("pixel_values") is None:
                return  # a decoding step that happened to sample the image token's id
            raise ModelError("image tokens came on top of a filled cache: earlier ones cannot attend to them (Eq. 2)")
        found[0] = image

    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        if found[0] is None:
            return None
        embeddings, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        mask = bidirectional_mask(text, embeddings, kwargs.get("attention_mask"), found[0], cache)
        return args, {**kwargs, "attention_mask": mask}

    hooks = [outer.register_forward_pre_hook(find, with_kwargs=True)]
    try:
        hooks.append(text.register_forward_pre_hook(replace, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Edit(NamedTuple):
    given: Mask
    made: Mask


@contextmanager
def knockout(
    text: PreTrainedModel, image: Bool[Tensor, "b s"], blocked: Bool[Tensor, "b s"], window: range | None = None
) -> Iterator[None]:
    """No image token attends to a blocked one (Eq. 1) in the decoder layers of the window (None: in all of them).

    Nor does a token that image tokens attend to, such as text between two images: it would hand on what it read. Text
    behind the images stays as it is. The finished mask of every layer is edited, so this adds to whatever attention the
    model has. Decoding steps with a cache hold text only and are not edited. CellError if a row would be left without
    any key, naming image and token: sdpa would then return nothing and eager attention would look at the future.
    """
    require_maskable(text)
    if bool((blocked & ~image).any()):
        raise CellError("a knockout can only block image tokens")
    edits: list[_Edit] = []  # layers of one kind are handed the same mask: it is edited once

    def edited(given: Mask) -> Mask:
        for one in edits:
            if one.given is given:
                return one.made
        if len(edits) >= MASKS:  # of forward passes before this one
            edits.clear()
        edits.append(_Edit(given, _without(given, image, blocked, text)))
        return edits[-1].made

    def edit(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        if "attention_mask" not in kwargs:
            raise ModelError(f"{type(layer).__name__} does not take its attention mask by name: it cannot be edited")
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] == 1 and image.shape[1] > 1:
            return None
        if hidden.shape[:2] != image.shape:
            got, expected = list(hidden.shape[:2]), list(image.shape)
            raise ModelError(f"a knockout made for [images, tokens] = {expected} met a forward pass over {got}")
        return args, {**kwargs, "attention_mask": edited(kwargs["attention_mask"])}

    hooks = []
    try:
        for number, layer in enumerate(decoder_layers(text)):
            if window is None or number in window:
                hooks.append(layer.register_forward_pre_hook(edit, with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def relaying(image: Bool[Tensor, "b s"], allowed: Bool[Tensor, "b q k"]) -> Bool[Tensor, "b s"]:
    """The tokens from which image tokens can hear, directly or through others, and the image tokens themselves.

    Under a causal mask these are all tokens up to the last image token, whatever the layer's window; a prefix that sees
    all of itself (PaliGemma) adds the text behind the image.
    """
    heard = image.flip(1).cumsum(1).flip(1) > 0
    while True:
        further = heard | (allowed & heard[:, :, None]).any(1)
        if bool((further == heard).all()):
            return heard
        heard = further


def _without(given: Mask, image: Bool[Tensor, "b q"], blocked: Bool[Tensor, "b q"], text: PreTrainedModel) -> Mask:
    """The finished mask of a layer less the forbidden pairs, in the form it was given."""
    batch, tokens = image.shape
    if given is None:
        if text.config._attn_implementation != "sdpa":  # only sdpa reads "no mask" as causal
            raise ModelError(f"no mask to edit with attention implementation {text.config._attn_implementation!r}")
        allowed = torch.ones(tokens, tokens, dtype=torch.bool, device=image.device).tril()[None, None]
    elif isinstance(given, BlockMask):
        allowed = create_mask(given.mask_mod, batch, None, tokens, tokens, device=image.device)
    elif given.dtype == torch.bool:
        allowed = given
    else:
        allowed = given > torch.finfo(given.dtype).min / 2
    rows = relaying(image, allowed[:, 0, :, :tokens].expand(batch, -1, -1))
    forbidden = knocked_out(rows, blocked)
    cut = F.pad(forbidden, (0, allowed.shape[-1] - tokens))[:, None]  # a static cache has room for keys to come
    left = allowed & ~cut
    empty = image & ~left.any(-1).all(1)
    if bool(empty.any()):
        row, token = empty.nonzero()[0].tolist()
        raise CellError(
            f"image {row} of the batch: token {token} of the sequence would have no key left to attend to; "
            "let the prompt begin with a token before the image, or block fewer tokens"
        )
    if isinstance(given, BlockMask):
        before = given.mask_mod
        return create_block_mask(
            lambda b, h, q, k: before(b, h, q, k) & ~forbidden[b, q, k],  # flex counts its arguments
            batch,
            None,
            tokens,
            tokens,
            device=str(image.device),
        )
    if given is None or given.dtype == torch.bool:
        return left
    return given.masked_fill(cut, torch.finfo(given.dtype).min)
