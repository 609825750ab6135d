"""Equations (1) and (2) against an attention written by hand: softmax over exactly the keys that may be attended to."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import IMAGE, build
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, create_mask
from transformers import LlamaModel, LlavaForConditionalGeneration, MistralConfig, MistralModel

from segbench import attention
from segbench.attention import (
    bidirectional_images,
    bidirectional_mask,
    decoder_layers,
    image_bidirectional,
    knocked_out,
    knockout,
    relaying,
    require_maskable,
)
from segbench.errors import CellError, ModelError

# Two sequences of different layout: text, image tokens (also in two runs), text; the first one is padded.
PAD, TEXT = 0, 7
IDS = torch.tensor(
    [
        [PAD, PAD, 1, TEXT, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, TEXT, 8],
        [1, TEXT, 8, IMAGE, IMAGE, IMAGE, 9, IMAGE, IMAGE, IMAGE, 9],
    ]
)
REAL = (IDS != PAD).long()
AT = IDS == IMAGE
BLOCKED = torch.zeros_like(AT)
BLOCKED[0, [4, 6]] = True
BLOCKED[1, [3, 8, 9]] = True


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def text(request) -> LlamaModel:
    model = build().model.language_model
    model.set_attn_implementation(request.param)
    return model


def embeddings(text: LlamaModel, ids: Tensor = IDS) -> Tensor:
    """Token embeddings in which no two image tokens are alike."""
    found = text.get_input_embeddings()(ids)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=found.dtype)
    return (found + noise * (ids == IMAGE)[..., None]).detach()


def by_hand(text: Any, states: Tensor, allowed: list[list[list[int]]]) -> Tensor:
    """The definition of the model in float64: every query attends to the keys that are listed for it."""
    text, states, config = deepcopy(text).double(), states.double(), text.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    angle = torch.arange(states.shape[1])[:, None] / config.rope_parameters["rope_theta"] ** (
        torch.arange(0, size, 2) / size
    )
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    for layer in text.layers:
        x, attention, mlp = normed(states, layer.input_layernorm.weight), layer.self_attn, layer.mlp
        query, key, value = (
            projection(x).unflatten(-1, (-1, size))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = turned(query), turned(key)
        mixed = torch.zeros_like(query)
        for row in range(len(states)):
            for q, keys in enumerate(allowed[row]):
                its_keys, its_values = (x[row, keys].repeat_interleave(heads // groups, 1) for x in (key, value))
                score = torch.einsum("hd,nhd->hn", query[row, q], its_keys) / size**0.5
                mixed[row, q] = torch.einsum("hn,nhd->hd", score.softmax(1), its_values)
        states = states + attention.o_proj(mixed.flatten(2))
        x = normed(states, layer.post_attention_layernorm.weight)
        states = states + mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    return normed(states, text.norm.weight)


def keys_of(row: int, query: int, bidirectional: bool, knocked: bool) -> list[int]:
    """Eq. (1) and (2) in the paper's words, for one query."""
    keys = []
    for key in range(IDS.shape[1]):
        both = bool(AT[row, query] and AT[row, key])
        if not REAL[row, key] or not (key <= query or (bidirectional and both)):
            continue
        if knocked and query <= int(AT[row].nonzero()[-1]) and BLOCKED[row, key]:
            continue  # image tokens, and text between images, which would hand on what it read
        keys.append(key)
    return keys


@pytest.mark.parametrize("knocked", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_attention_is_a_softmax_over_exactly_the_allowed_keys(text, bidirectional, knocked):
    inputs = embeddings(text)
    mask = bidirectional_mask(text, inputs, REAL, AT) if bidirectional else REAL
    if knocked:
        with knockout(text, AT, BLOCKED):
            found = text(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    else:
        found = text(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    allowed = [[keys_of(row, q, bidirectional, knocked) for q in range(IDS.shape[1])] for row in range(2)]
    expected = by_hand(text, inputs, allowed)
    real = REAL.bool()
    torch.testing.assert_close(found[real].double(), expected[real], rtol=0, atol=1e-4)
    if bidirectional or knocked:  # and the comparison can tell: the plain model is far away
        plain = text(inputs_embeds=inputs, attention_mask=REAL, use_cache=False).last_hidden_state
        assert (plain - expected)[AT].abs().max() > 0.01


def test_booleans_say_what_the_equations_say():
    causal_mask = torch.ones(2, IDS.shape[1], IDS.shape[1], dtype=torch.bool).tril()
    both, forbidden = image_bidirectional(AT), knocked_out(relaying(AT, causal_mask), BLOCKED)
    for row in range(2):
        for q in range(IDS.shape[1]):
            causal = {key for key in range(IDS.shape[1]) if key <= q}
            allowed = causal | set(both[row, q].nonzero()[:, 0].tolist())
            allowed -= set(forbidden[row, q].nonzero()[:, 0].tolist())
            padding = set((REAL[row] == 0).nonzero()[:, 0].tolist())
            assert sorted(allowed - padding) == keys_of(row, q, True, True)


# --------------------------------------------------------------------------------------------------------- knockout


@torch.no_grad()
def states(text: LlamaModel, inputs: Tensor, real: Tensor | None = REAL) -> list[Tensor]:
    """What enters every block, and the end."""
    return list(
        text(inputs_embeds=inputs, attention_mask=real, use_cache=False, output_hidden_states=True).hidden_states
    )


def moved(inputs: Tensor, which: Tensor) -> Tensor:
    return torch.where(which[..., None], -2 * inputs + 0.5, inputs)


@pytest.mark.parametrize("real", [REAL, None])
def test_knocked_out_tokens_have_no_influence_on_other_image_tokens_at_any_layer(text, real):
    inputs = embeddings(text)
    with knockout(text, AT, BLOCKED):
        before, after = states(text, inputs, real), states(text, moved(inputs, BLOCKED), real)
    free = AT & ~BLOCKED
    for first, second in zip(before, after, strict=True):
        assert (first - second)[free].abs().max() == 0
    assert (before[-1] - after[-1])[:, -1].abs().max() > 0  # text behind the images still reads them


def test_text_between_images_hands_nothing_on(text, monkeypatch):
    """Blocking the rows of image tokens alone, the letter of Eq. (1), would leak through it."""
    inputs = embeddings(text)
    free = AT & ~BLOCKED
    with knockout(text, AT, BLOCKED):
        before, after = states(text, inputs), states(text, moved(inputs, BLOCKED))
    assert (before[-1] - after[-1])[free].abs().max() == 0
    monkeypatch.setattr(attention, "relaying", lambda image, allowed: image)
    with knockout(text, AT, BLOCKED):
        before, after = states(text, inputs), states(text, moved(inputs, BLOCKED))
    assert (before[-1] - after[-1])[free].abs().max() > 1e-3


def test_tokens_hand_on_what_other_layers_let_them_hear():
    """Where tokens hear of themselves alone nothing is handed on, but a layer without such a window is not far."""
    image = torch.tensor([[False, False, True, False, False, False, True, False]])
    assert relaying(image, torch.eye(8, dtype=torch.bool)[None]).tolist() == [[True] * 7 + [False]]


def test_prefix_that_sees_all_of_itself_hands_nothing_on(text):
    """As in PaliGemma: text behind the image is heard by the image, so it may not read what is knocked out."""
    inputs = embeddings(text)[1:, :8]
    image, blocked = AT[1:, :8] & (torch.arange(8) < 6), BLOCKED[1:, :8] & (torch.arange(8) < 6)
    full = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    if text.config._attn_implementation == "eager":
        full = torch.zeros(1, 1, 8, 8)
    with knockout(text, image, blocked):
        before, after = states(text, inputs, full), states(text, moved(inputs, blocked), full)
    assert (before[-1] - after[-1])[image & ~blocked].abs().max() == 0
    assert (states(text, inputs, full)[-1] - states(text, moved(inputs, blocked), full)[-1])[image & ~blocked].any()


def test_a_set_in_one_image_leaves_the_other_image_as_it_was(text):
    inputs, blocked = embeddings(text), BLOCKED.clone()
    blocked[1] = False
    with knockout(text, AT, torch.zeros_like(AT)):
        plain = states(text, inputs)
    with knockout(text, AT, blocked):
        cut = states(text, inputs)
    assert torch.equal(cut[-1][1], plain[-1][1])
    assert not torch.equal(cut[-1][0], plain[-1][0])


def test_knockout_of_nothing_changes_nothing(text):
    inputs = embeddings(text)
    with knockout(text, AT, torch.zeros_like(AT)):
        cut = states(text, inputs)
    torch.testing.assert_close(cut[-1], states(text, inputs)[-1], rtol=0, atol=1e-5)


def test_every_forward_pass_within_a_knockout_keeps_its_own_mask(text):
    inputs = embeddings(text)
    with knockout(text, AT, BLOCKED):
        padded, full = states(text, inputs, REAL), states(text, inputs, torch.ones_like(REAL))
    with knockout(text, AT, BLOCKED):
        assert torch.equal(states(text, inputs, torch.ones_like(REAL))[-1], full[-1])
    assert not torch.equal(padded[-1], full[-1])


def test_window_cuts_only_in_its_layers(text):
    inputs = embeddings(text)
    plain = states(text, inputs)
    with knockout(text, AT, BLOCKED, range(2, 3)):
        cut = states(text, inputs)
    for layer in (0, 1, 2):  # what enters block 2 has not met it
        torch.testing.assert_close(cut[layer], plain[layer], rtol=0, atol=1e-5)
    assert (cut[3] - plain[3])[AT].abs().max() > 1e-3
    with knockout(text, AT, BLOCKED, range(0)):
        torch.testing.assert_close(states(text, inputs)[-1], plain[-1], rtol=0, atol=1e-5)


def test_model_is_the_same_after_the_context_also_when_it_failed(text):
    inputs = embeddings(text)
    plain = states(text, inputs)
    with pytest.raises(ModelError), knockout(text, AT, BLOCKED):
        states(text, inputs[:, :-1], None)
    assert all(map(torch.equal, states(text, inputs), plain))
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(text))


def test_row_without_any_key_is_refused_with_its_token(text):
    ids = torch.tensor([[IMAGE, IMAGE, IMAGE]])
    blocked = torch.tensor([[True, False, False]])
    with (
        knockout(text, ids == IMAGE, blocked),
        pytest.raises(CellError, match="image 0 of the batch: token 0 of the sequence would have no key left"),
    ):
        states(text, embeddings(text, ids), None)


def test_text_cannot_be_blocked(text):
    with pytest.raises(CellError, match="only block image tokens"), knockout(text, AT, ~AT):
        pass


def test_forward_pass_of_another_shape_is_refused(text):
    with (
        knockout(text, AT, BLOCKED),
        pytest.raises(ModelError, match=r"made for \[images, tokens\] = \[2, 11\] met .* \[2, 10\]"),
    ):
        states(text, embeddings(text)[:, :10], None)


@torch.no_grad()
def test_decoding_after_a_knocked_out_prefill_is_the_forward_of_the_whole(text):
    """Text rows are untouched, so one more text token with a cache sees what it sees without one."""
    row = slice(1, 2)  # without padding
    inputs = embeddings(text)[row]
    with knockout(text, AT[row, :-1], BLOCKED[row, :-1]):
        start = text(inputs_embeds=inputs[:, :-1], use_cache=True)
        last = text(inputs_embeds=inputs[:, -1:], past_key_values=start.past_key_values).last_hidden_state
    with knockout(text, AT[row], BLOCKED[row]):
        whole = states(text, inputs, None)[-1]
    torch.testing.assert_close(last[:, 0], whole[:, -1], rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------- the transformers model itself


@pytest.fixture(scope="module")
def llava() -> LlavaForConditionalGeneration:
    return build()


def prompt(rows: int = 1) -> dict[str, Tensor]:
    ids = torch.tensor([[1, 5, *[IMAGE] * 36, TEXT, 8]]).expand(rows, -1)
    pixels = torch.randn((rows, 3, 48, 48), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def inside(llava: LlavaForConditionalGeneration):
    return bidirectional_images(llava.model, llava.model.language_model, IMAGE)


@pytest.fixture
def stays_causal(llava) -> Iterator[None]:
    """Whatever a test does with the model, afterwards it is causal again."""
    before = llava.model(**prompt(), use_cache=False).last_hidden_state
    yield
    assert torch.equal(llava.model(**prompt(), use_cache=False).last_hidden_state, before)


@torch.no_grad()
def test_first_image_token_sees_later_ones_only_within_the_context(llava, stays_causal):
    causal = llava.model(**prompt(), use_cache=False).last_hidden_state
    with inside(llava):
        both = llava.model(**prompt(), use_cache=False).last_hidden_state
    torch.testing.assert_close(both[:, :2], causal[:, :2], rtol=0, atol=1e-6)  # text in front
    assert (both - causal)[:, 2].abs().max() > 1e-3


@pytest.mark.parametrize("cache", [None, "static"])
@torch.no_grad()
def test_generated_tokens_are_those_of_forward_passes_without_a_cache(llava, stays_causal, cache):
    inputs, kept = prompt(), {"output_logits": True, "return_dict_in_generate": True}
    with inside(llava):
        found = llava.generate(
            **inputs, **kept, max_new_tokens=4, min_new_tokens=4, do_sample=False, cache_implementation=cache
        )
        assert len(found.logits) == 4
        for step, logits in enumerate(found.logits):
            ids = found.sequences[:, : inputs["input_ids"].shape[1] + step]
            again = llava(ids, inputs["pixel_values"], torch.ones_like(ids), use_cache=False)
            torch.testing.assert_close(again.logits[:, -1], logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_image_on_top_of_a_filled_cache_is_refused(llava, stays_causal):
    with inside(llava):
        cache = llava.model(**prompt(), use_cache=True).past_key_values
        with pytest.raises(ModelError, match="on top of a filled cache"):
            llava.model(**prompt(), past_key_values=cache)


@torch.no_grad()
def test_decoding_step_that_sampled_the_image_token_is_text(llava, stays_causal):
    with inside(llava):
        cache = llava.model(**prompt(), use_cache=True).past_key_values
        ids = torch.tensor([[IMAGE]])
        embedded = llava.get_input_embeddings()(ids)
        assert llava.model(input_ids=ids, past_key_values=cache).last_hidden_state.shape == embedded.shape


def test_embeddings_without_ids_are_refused(llava, stays_causal):
    with inside(llava), pytest.raises(ModelError, match="needs input_ids"):
        llava.model(inputs_embeds=torch.zeros(1, 3, 48))


def test_mask_that_somebody_finished_is_refused(llava):
    text = llava.model.language_model
    with pytest.raises(ModelError, match="has finished the attention mask already"):
        bidirectional_mask(text, torch.zeros(1, 3, 48), torch.ones(1, 1, 3, 3), torch.ones(1, 3, dtype=torch.bool))


def test_back_end_that_cannot_honour_a_mask_is_refused_by_name(llava):
    text = llava.model.language_model
    before = text.config._attn_implementation
    text.config._attn_implementation = "flash_attention_2"
    refused = r"'flash_attention_2' cannot honour a mask of image tokens; use sdpa or eager"
    try:
        for enter in (lambda: inside(llava), lambda: knockout(text, AT, BLOCKED)):
            with pytest.raises(ModelError, match=refused), enter():
                pass
    finally:
        text.config._attn_implementation = before


def test_sliding_windows_are_refused_by_name_where_something_is_to_be_allowed():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MistralConfig(**size, num_hidden_layers=1, vocab_size=8, sliding_window=4)
    config.layer_types = ["sliding_attention"]
    text = MistralModel(config)
    with pytest.raises(ModelError, match="MistralModel has sliding_attention; only full_attention can be edited"):
        bidirectional_mask(text, torch.zeros(1, 3, 32), None, torch.ones(1, 3, dtype=torch.bool))
    require_maskable(text)  # to forbid is possible within a window, too
    config.layer_types = ["linear_attention"]
    with pytest.raises(ModelError, match="MistralModel has linear_attention"):
        require_maskable(text)


# -------------------------------------------------------------------------------------------------------------- flex


def test_block_mask_is_edited_as_a_boolean_one(llava):
    """What flex attention is handed; to run it takes a compiler and a minute."""

    def causal(b, h, q, k):
        return q >= k

    text, size = llava.model.language_model, IDS.shape[1]
    given = create_block_mask(causal, 2, None, size, size, device="cpu")
    edited = attention._without(given, AT, BLOCKED, text)
    boolean = torch.ones(2, 1, size, size, dtype=torch.bool).tril()
    found = create_mask(edited.mask_mod, 2, None, size, size, device="cpu")  # type: ignore[union-attr]
    assert torch.equal(found, attention._without(boolean, AT, BLOCKED, text))
    assert not torch.equal(found, boolean)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_flex_attention_computes_what_sdpa_does(bidirectional):
    found = []
    for implementation in ("sdpa", "flex_attention"):
        text = build().model.language_model
        text.set_attn_implementation(implementation)
        inputs = embeddings(text)
        mask = bidirectional_mask(text, inputs, REAL, AT) if bidirectional else REAL
        with knockout(text, AT, BLOCKED):
            states_ = text(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
        found.append(states_[REAL.bool()])
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
