"""Stepping block by block gives the states of one forward pass to the last bit, or the model says that it cannot."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tiny_families
import tiny_models
import torch
from drawn import samples

from segbench import registry
from segbench.adapters.base import FINAL, Adapter
from segbench.adapters.stepping import Stepper, at_patches, resting
from segbench.attention import decoder_layers
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Site

OWN = {name: name for name in ("llava", "llava_next", "llava_onevision", "deepseek_vl", "qwen2_5_vl")}
OWN["deepseek_vl_hybrid"] = "deepseek_vl"
ONE_WAY = ("gemma3", "paligemma", "aya_vision", "exaone4_5", "qwen3_5", "lfm3_vl", "dots3_note")  # Eq. (2) is refused
REFUSED = {"gemma4": "stepped to llm.2, the states are not those of one forward pass"}  # a vector of its own per layer
UNREAD = ("idefics2", "mllama", "blip-2", "kosmos-2.5", "got_ocr2", "granite4_vision", "mistral3", "llava-pixtral")
ALWAYS = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "qwen3_5", "deepseek_vl", "llava_onevision")
READERS = [(family, OWN.get(family, "auto")) for family in tiny_families.FAMILIES if family not in UNREAD]
CASES = [
    pytest.param(
        family, adapter, attention, id=f"{family}-{attention}", marks=() if family in ALWAYS else pytest.mark.slow
    )
    for family, adapter in READERS
    for attention in ("native", "bidirectional")
    if family not in REFUSED and (attention == "native" or family not in ONE_WAY)
]


@cache
def place() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="segbench-stepping-")


@cache
def folder(family: str) -> Path:
    return tiny_families.write(family, Path(place().name) / family)


def load(family: str, adapter: str, attention: str = "native", dtype: str = "float32") -> Adapter:
    """Without the self-tests, which have tests of their own."""
    fields = {"attention": attention, "prompt": None, "dtype": dtype}
    spec = ModelSpec.model_validate({"name": "tiny", "adapter": adapter, "weights": folder(family), **fields})
    return registry.module("adapters", adapter).load(spec, "cpu")


def encoded(adapter: Adapter):
    return adapter.encode(adapter.prepare(samples([(48, 64)] * 2)))


@pytest.mark.parametrize(("family", "adapter", "attention"), CASES)
def test_every_site_is_that_of_one_forward_pass_to_the_last_bit(family, adapter, attention):
    model = load(family, adapter, attention)
    batch = encoded(model)
    stepper = Stepper.of(model, batch)
    states, at_rest = stepper.enter(batch), resting(batch)
    for block in range(model.depth):
        known = [site for site in model.known_sites() if site.layer == block and site.stage == "llm"]
        streams = [site for site in known if site.stream in ("key", "value")]
        here = Site("llm", block)
        expected = model.decode(batch, [here, *streams])
        assert torch.equal(at_patches(batch, states), expected[here])
        states, taken = stepper.advance(at_rest, states, block, streams)
        assert set(taken) == set(streams)
        assert all(torch.equal(taken[site], expected[site]) for site in streams)
    final = at_patches(batch, stepper.norm(at_rest, states))
    assert torch.equal(final, model.decode(batch, [FINAL])[FINAL])
    assert not any("forward" in vars(block) for block in decoder_layers(model.parts.text))


def test_half_precision_steps_to_the_last_bit_too():
    model = load("llava", "llava", dtype="bfloat16")
    assert model.model.dtype == torch.bfloat16
    Stepper.of(model, encoded(model))


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_whose_blocks_need_more_than_the_states_before_them_says_so(family):
    try:
        model = load(family, "auto")
    except ModelError as error:  # transformers 5.17 hides Gemma 4's processor where torchvision is absent
        pytest.skip(str(error))
    with pytest.raises(ModelError, match=REFUSED[family]):
        Stepper.of(model, encoded(model))


def test_keys_before_the_rotary_embedding_come_with_their_block(tmp_path):
    model = registry.module("adapters", "llava").load(tiny_models.spec(tiny_models.write(tmp_path)), "cpu")
    batch, site = encoded(model), Site("llm", 1, "key_pre")
    stepper = Stepper.of(model, batch)
    states, _ = stepper.advance(batch, stepper.enter(batch), 0)
    _, taken = stepper.advance(batch, states, 1, [site])
    assert torch.equal(taken[site], model.decode(batch, [site])[site])


def test_a_block_that_remembers_the_one_before_it_is_found_out(tmp_path):
    model = registry.module("adapters", "llava").load(tiny_models.spec(tiny_models.write(tmp_path)), "cpu")
    first, second = decoder_layers(model.parts.text)[:2]
    seen = []
    first.register_forward_hook(lambda block, args, out: seen.append(out))
    second.register_forward_pre_hook(lambda block, args: (args[0] + seen.pop(), *args[1:]))
    with pytest.raises(ModelError, match=r"stepped to llm\.1, the states are not those of one forward pass"):
        Stepper.of(model, encoded(model))
    assert not any("forward" in vars(block) for block in decoder_layers(model.parts.text))
