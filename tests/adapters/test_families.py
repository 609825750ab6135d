"""What has to hold for a family, whichever it is: each is written to disk as a tiny checkpoint and read by its adapter.

Everything is compared with the stock model of transformers, or with an attention written by hand in float64. Run as a
script, this file writes models/families.md, the table of what `auto` makes of each family.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import tiny_families
import torch
import transformers
from drawn import at_patches, samples
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from segbench import registry
from segbench.adapters import _selftest, base
from segbench.adapters.base import ADAPTER, FINAL, Adapter
from segbench.attention import knockout
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Site

OWN = {  # families with an adapter of their own
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "deepseek_vl": "deepseek_vl",
    "deepseek_vl_hybrid": "deepseek_vl",
    "qwen2_5_vl": "qwen2_5_vl",
}
DYNAMIC = """qwen2_vl qwen2_5_vl qwen3_5 glm4v glm46v glm_ocr video_llama_3 paddleocr_vl exaone4_5 lighton_ocr lfm3_vl
dots3_note ernie4_5_vl_moe hyperclovax_vision_v2"""  # take pictures of any size: a small one is enough here
FIELDS: dict[str, dict[str, Any]] = {name: {"resolution": 96} for name in DYNAMIC.split()}
FIELDS["got_ocr2"] = {"implementation": "eager"}
FIELDS["deepseek_vl_hybrid"] = {"resolution": 128}
OLD = transformers.__version__.startswith("5.17.")
UNEVEN = ("hunyuan_vl",)  # its own code gives the later images of a batch slightly other states
NORM_BEHIND = ("hunyuan_vl",)  # norms its keys behind the rotary embedding
SLIDING = ("aya_vision", "exaone4_5", "gemma4")  # have layers that see a window only
RATIOS = [(120, 120), (96, 128), (128, 96), (70, 210), (200, 80)]  # H x W
READERS = [(family, "auto") for family in tiny_families.FAMILIES]
READERS += [(family, adapter) for family, adapter in OWN.items() if adapter in registry.names("adapters")]

REFUSED = {  # by family, what auto says; nothing else may be refused
    "idefics2": "a resampler mixes places",
    "mllama": "not called with embeddings that hold the image",
    "blip-2": "no text model with a list of layers",
    "kosmos-2.5": "nothing says how many pixels its pictures have",
    "got_ocr2": "cannot be told apart by the",
    "dots3_note": "words behind the image change it",
    "granite4_vision": "no module gives the vectors that stand at the image tokens",
}
TORCHVISION = importlib.util.find_spec("torchvision") is not None
if not TORCHVISION:
    REFUSED |= dict.fromkeys(("mistral3", "llava-pixtral"), "PixtralProcessor requires the Torchvision library")
if OLD and not TORCHVISION:  # where transformers hides what would do without it
    hidden = ("smolvlm", "idefics2", "idefics3", "ovis2", "hunyuan_vl", "gemma4")
    REFUSED |= dict.fromkeys(hidden, "the processor cannot be loaded")


@cache
def place() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="segbench-families-")


@cache
def folder(family: str) -> Path:
    return tiny_families.write(family, Path(place().name) / family)


@cache
def load(family: str, adapter: str, attention: str = "native", implementation: str = "sdpa") -> Adapter | ModelError:
    fields: dict[str, Any] = {"attention": attention, "prompt": None, "implementation": implementation}
    fields |= FIELDS.get(family, {})
    try:
        return base.load(ModelSpec(name="tiny", adapter=adapter, weights=folder(family), **fields), "cpu")
    except ModelError as error:
        return error


def readable(reader: tuple[str, str], attention: str = "native", implementation: str = "sdpa") -> Adapter:
    found = load(*reader, attention, implementation)
    if isinstance(found, ModelError):
        raise found
    return found


CAN = [reader for reader in READERS if reader[1] != "auto" or reader[0] not in REFUSED]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "got_ocr2" else ())  # paints a thousand pixels a side
        for name in tiny_families.FAMILIES
        if name in REFUSED
    ],
)
def test_what_cannot_be_read_patch_by_patch_is_refused_with_its_reason(family):
    with pytest.raises(ModelError, match=REFUSED[family]):
        readable((family, "auto"))
    its_line_in_the_table_is_true((family, "auto"))


# ---------------------------------------------------------------------------------------------- against transformers


@torch.no_grad()
def every_residual_is_what_transformers_computes(reader):
    adapter = readable(reader)
    batch = adapter.prepare(samples(RATIOS[:1] * 2))
    llm = [Site("llm", layer) for layer in range(adapter.depth + 1)]
    features = adapter.read(batch, [ADAPTER, *llm, FINAL])
    plain = adapter.parts.outer(**batch.inputs, output_hidden_states=True, use_cache=False)
    entering = _entering(adapter, batch)  # hidden states leave out what is added between blocks (Qwen3-VL's deepstack)
    for layer in range(adapter.depth):
        assert torch.equal(features[llm[layer]], at_patches(entering[layer], batch)), layer
        if not adapter.parts.text.__class__.__name__.startswith("Qwen3VL"):
            assert torch.equal(features[llm[layer]], at_patches(plain.hidden_states[layer], batch)), layer
    assert torch.equal(features[FINAL], at_patches(plain.last_hidden_state, batch))
    assert torch.equal(features[llm[-1]], at_patches(entering[-1], batch))
    assert torch.equal(features[ADAPTER], features[llm[0]])
    assert all(feature.shape[-1] == adapter.widths[site] for site, feature in features.items())


@torch.no_grad()
def keys_and_values_are_those_of_a_cache_and_rotating_keeps_their_length(reader):
    adapter = readable(reader)
    batch = adapter.prepare(samples(RATIOS[:1]))
    sites = [site for site in adapter.known_sites() if site.stream in ("key", "value")]
    features = adapter.read(batch, sites)
    cache_ = DynamicCache(config=adapter.parts.text.config)
    kept: dict[Site, Tensor] = {}
    update = cache_.update

    def keep(keys: Tensor, values: Tensor, layer: int, *others: Any, **more: Any) -> Any:
        kept[Site("llm", layer, "key")], kept[Site("llm", layer, "value")] = keys, values
        return update(keys, values, layer, *others, **more)

    cache_.update = keep  # type: ignore[method-assign]  # a sliding layer's cache forgets
    adapter.parts.outer(**batch.inputs, past_key_values=cache_, use_cache=True)
    for site in sites:
        expected = kept[site].transpose(1, 2)  # b s heads d
        assert torch.equal(features[site], at_patches(expected.flatten(2), batch)), site
    rotated: list[bool] = []  # some families leave some blocks without (Cohere, EXAONE)
    for site in (one for one in sites if one.stream == "key"):
        before = Site("llm", site.layer, "key_pre")
        raw = adapter.read(batch, [before])[before]
        size = kept[site].shape[-1]
        if reader[0] not in NORM_BEHIND:
            lengths = [one.unflatten(-1, (-1, size)).norm(dim=-1) for one in (raw, features[site])]
            torch.testing.assert_close(*lengths, rtol=1e-4, atol=1e-5)
        rotated.append(not torch.equal(raw, features[site]))
    assert any(rotated) or not rotated


def batch_of_one_is_batch_of_four(reader):
    adapter = readable(reader)
    four = samples(RATIOS[:1] * 4)
    sites = [*adapter.sites(), [site for site in adapter.known_sites() if site.stream == "value"][-1]]
    together = adapter.read(adapter.prepare(four), sites)
    for row, sample in enumerate(four[::3]):
        alone = adapter.read(adapter.prepare([sample]), sites)
        for site in sites:
            scale = together[site].square().mean().sqrt()
            limit = 5e-3 if reader[0] in UNEVEN else 1e-4
            assert (alone[site][0] - together[site][3 * row]).abs().max() < limit * scale, site


def conditions_in_one_batch_are_conditions_one_by_one(reader):
    """Rows of the call to the text model are taken whatever it holds: masks by kind, positions on three axes ..."""
    adapter = readable(reader)
    encoded = adapter.encode(adapter.prepare(samples(RATIOS[:1] * 3)))
    plain = adapter.decode(encoded, [FINAL])[FINAL]
    order = [2, 0, 2, 1]
    taken = adapter.decode(encoded.take(order), [FINAL])[FINAL]
    limit = 5e-3 if reader[0] in UNEVEN else 1e-4
    assert (taken - plain[order]).abs().max() < limit * plain.square().mean().sqrt()
    assert (plain[0] - plain[2]).abs().max() > 1e-2


# --------------------------------------------------------------------------------------------------------- geometry


def painted_bands_light_up_the_patches_that_the_layout_names(reader):
    adapter = readable(reader)
    for image in RATIOS:
        assert _selftest.layout(adapter, image)["layout"] < 0.4, image
    for preprocess, image in (("pad", RATIOS[3]), ("crop", RATIOS[4])):
        found = Adapter(
            adapter.embedder, replace(adapter.layout, framing=replace(adapter.layout.framing, mode=preprocess))
        )
        assert _selftest.layout(found, image)["layout"] < 0.4, preprocess


# --------------------------------------------------------------------------------------------------------- attention


def knocked_out_patches_have_no_influence_on_other_image_tokens(reader):
    """By perturbation at every layer, and by gradient."""
    adapter = readable(reader)
    encoded = adapter.encode(adapter.prepare(samples(RATIOS[:1] * 2)))
    blocked = torch.rand(encoded.image_at.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    blocked[:, 0] = blocked[:, -1] = False
    llm = [*(Site("llm", layer) for layer in range(adapter.depth + 1)), FINAL]
    if adapter.declared.no_knockout:
        with pytest.raises(ModelError, match=r"no knockout: .*can be edited here"):
            adapter.decode(encoded, llm, blocked)
        return
    vectors = encoded.call["inputs_embeds"].clone()
    rows, columns = blocked.nonzero(as_tuple=True)
    vectors[rows, encoded.image_at[rows, columns]] *= -2
    before, after = (adapter.decode(one, llm, blocked) for one in (encoded, encoded.with_embeddings(vectors)))
    for site in llm:
        assert (before[site] - after[site])[~blocked].abs().max() <= _selftest._leak(adapter), site  # 0 but for experts

    start = encoded.call["inputs_embeds"].detach().clone().requires_grad_()
    sequence = torch.zeros_like(encoded.image).scatter(1, encoded.image_at, blocked)
    with knockout(adapter.parts.text, encoded.image, sequence):
        call = {**encoded.call, "inputs_embeds": start, "past_key_values": None, "use_cache": False}
        states = adapter.parts.text(**call).last_hidden_state
    free = torch.zeros_like(encoded.image).scatter(1, encoded.image_at, ~blocked)
    (states[free] * torch.randn(states[free].shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert start.grad is not None
    assert start.grad[sequence].abs().max() == 0
    assert start.grad[free].abs().max() > 0


@torch.no_grad()
def bidirectional_image_attention_is_a_softmax_written_by_hand(reader):
    """Eq. (2), of prompts of different length, in float64."""
    adapter = readable(reader)
    if adapter.selftests["first_token"] > 0 or adapter.declared.no_knockout or reader[0] in SLIDING:
        with pytest.raises(ModelError, match=r"attention mask already|can be edited here"):
            readable(reader, "bidirectional")
        return
    both = readable(reader, "bidirectional")
    greedy_generation_is_recomputation_without_a_cache(reader, "bidirectional")
    for side in ("left", "right"):
        _compare(adapter, both, _padded(both, side))


def _compare(adapter: Adapter, both: Adapter, inputs: dict[str, Tensor]) -> None:
    image = inputs["input_ids"] == both.parts.image_token_id
    with both.attention():
        found = both.parts.outer(**inputs, use_cache=False).last_hidden_state
    real = inputs["attention_mask"].bool()
    causal = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    allowed = (causal | image[:, :, None] & image[:, None, :]) & real[:, None, :]
    with _by_hand(both, allowed):
        expected = both.parts.outer(**inputs, use_cache=False).last_hidden_state
    scale = expected[real].square().mean().sqrt()
    assert (found[real] - expected[real]).abs().max() < 1e-5 * scale
    plain = adapter.parts.outer(**inputs, use_cache=False).last_hidden_state
    assert (plain - expected)[image].abs().max() > 1e-3 * scale


def eager_attention_computes_what_sdpa_does(reader):
    """Both ways and knocked out, for the families with an adapter of their own."""
    if reader[1] == "auto":
        return
    found = []
    for implementation in ("sdpa", "eager"):
        adapter = readable(reader, "bidirectional", implementation)
        assert adapter.parts.text.config._attn_implementation == implementation
        encoded = adapter.encode(adapter.prepare(samples(RATIOS[:1] * 2)))
        blocked = torch.rand(encoded.image_at.shape, generator=torch.Generator().manual_seed(0)) < 0.3
        found.append(adapter.decode(encoded, [FINAL], blocked)[FINAL])
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@torch.no_grad()
def greedy_generation_is_recomputation_without_a_cache(reader, attention="native"):
    adapter = readable(reader, attention)
    prompt = _padded(adapter, "right", rows=1)
    model, new = cast("Any", adapter.model), 3
    model.generation_config.eos_token_id = None
    with adapter.attention():
        out = model.generate(
            **prompt,
            max_new_tokens=new,
            do_sample=False,
            suppress_tokens=[adapter.parts.image_token_id],
            output_logits=True,
            return_dict_in_generate=True,
        )
        for step in range(1, new):
            inputs = _longer(adapter, prompt, out.sequences[:, : prompt["input_ids"].shape[1] + step])
            again = model(**inputs, use_cache=False).logits[:, -1]
            scale = again.square().mean().sqrt()
            assert (again - out.logits[step]).abs().max() < 1e-4 * scale, step


# ----------------------------------------------------------------------------------------------------------- helpers


def _entering(adapter: Adapter, batch: base.Batch) -> list[Tensor]:
    """What enters every block, and the final norm, in the stock model's own forward pass."""
    seen: list[Tensor] = []
    places = [*adapter.parts.text.layers, adapter.parts.norm]  # type: ignore[misc]
    hooks = [
        place.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        for place in places
    ]
    try:
        adapter.parts.outer(**batch.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _longer(adapter: Adapter, inputs: Any, ids: Tensor) -> dict[str, Tensor]:
    """Inputs whose text goes on: whatever is as long as the prompt is filled up as text."""
    suffix = "token_type_ids" if adapter.model.config.model_type == "paligemma" else None  # 0 would be its prefix
    before = inputs["input_ids"]
    more = ids.shape[1] - before.shape[1]
    found = dict(inputs)
    for name, value in inputs.items():
        if value.shape == before.shape:
            fill = 1 if name in ("attention_mask", suffix) else 0
            found[name] = torch.nn.functional.pad(value, (0, more), value=fill)
    found["input_ids"] = ids
    return found


def _padded(adapter: Adapter, side: str, rows: int = 2) -> dict[str, Tensor]:
    """Two prompts, the first one three text tokens longer behind the image, the other padded; or the first one."""
    one = adapter.prepare(samples(RATIOS[:1] * rows)).inputs
    ids = one["input_ids"]
    word = int(ids[0, 0]) if int(ids[0, 0]) != adapter.parts.image_token_id else int(ids[0, -1])
    words = [n for n in range(int(ids.max())) if n not in ids.unique().tolist()]
    text = torch.tensor([words[:3] or [word] * 3]).expand(rows, -1)
    found = _longer(adapter, one, torch.cat([ids, text], 1))
    if rows == 1:
        return found
    shift = 3 if side == "left" else 0
    for name, value in found.items():
        if value.shape == found["input_ids"].shape:
            row = value[1, : ids.shape[1]]
            padding = torch.zeros(3, dtype=value.dtype)
            parts = [padding, row] if shift else [row, padding]
            found[name] = torch.stack([value[0], torch.cat(parts)])
    mask = torch.ones_like(found["input_ids"])
    mask[1, :3] = 0 if shift else 1
    if not shift:
        mask[1, -3:] = 0
    return found | {"attention_mask": mask}


@contextmanager
def _by_hand(adapter: Adapter, allowed: Tensor) -> Iterator[None]:
    """Attention of the text model as its definition says, over exactly these keys, deaf to any mask."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling=None, **more: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        q, k, v = query.double(), key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
        score = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
        weights = score.masked_fill(~allowed[:, None], float("-inf")).softmax(-1).nan_to_num()  # rows of padding
        return (weights @ v).to(query.dtype).transpose(1, 2).contiguous(), None

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", eager_mask)
    config = adapter.parts.text.config
    before = config._attn_implementation
    config._attn_implementation = "by_hand"
    try:
        yield
    finally:
        config._attn_implementation = before


# -------------------------------------------------------------------------------------------------------------- table

TABLE = Path(__file__).parents[2] / "models/families.md"
HEAD = """# What `auto` makes of the families of transformers {version}
One tiny checkpoint each, written and read by the tests (`tests/adapters/test_families.py` holds every line to them, and
writes this file when it is run as a script). Tokens and grid are those of the tiny checkpoint; torchvision was not
installed. *Rows*: what the projector consumes for one patch. *Others*: image tokens without a place in this grid, such
as newlines, tiles and registers. *Attention*: whether the family's own code lets an image token see later ones.

| family | class | grid | tokens | others | rows | attention | knockout |
|---|---|---|---:|---:|---:|---|---|
"""


def line(family: str) -> str:
    """The family's line in the table."""
    found = load(family, "auto")
    if isinstance(found, ModelError):
        return f"| {family} | | refused: {REFUSED[family]} | | | | | |"
    placement = found.placement(RATIOS[0])
    h, w = placement.grid
    rows = " + ".join(str(one.shape[1]) for one in placement.consumed)
    sees = "both ways" if found.selftests["first_token"] > 0 else "causal"
    cut = "no: not all layers have a mask" if found.declared.no_knockout else "yes"
    others = placement.tokens - h * w
    cells = (family, type(found.model).__name__, f"{h} x {w}", placement.tokens, others, rows, sees, cut)
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    lines = [line(family) for family in tiny_families.FAMILIES]
    read = sum("refused" not in one for one in lines)
    return HEAD.format(version=transformers.__version__) + "\n".join(lines) + f"\n\n{read} of {len(lines)} are read.\n"


def same_version() -> bool:
    return not TORCHVISION and TABLE.read_text(encoding="utf-8").startswith(
        HEAD.format(version=transformers.__version__)
    )


def test_table_has_every_family_once_and_at_least_twenty_are_read():
    lines = [one for one in TABLE.read_text(encoding="utf-8").splitlines() if one.startswith("| ")][1:]
    names = [one.split(" | ")[0].removeprefix("| ") for one in lines]
    if same_version():
        assert names == list(tiny_families.FAMILIES), f"run {Path(__file__).name} as a script"
    assert len(set(names)) == len(names)
    assert sum("refused" not in one for one in lines) >= 20


def its_line_in_the_table_is_true(reader):
    if reader[1] == "auto" and same_version():
        text = TABLE.read_text(encoding="utf-8")
        assert line(reader[0]) in text, f"run {Path(__file__).name} as a script"


# ------------------------------------------------------------------------------------------------- all, by family

CHECKS = (
    every_residual_is_what_transformers_computes,
    keys_and_values_are_those_of_a_cache_and_rotating_keeps_their_length,
    batch_of_one_is_batch_of_four,
    conditions_in_one_batch_are_conditions_one_by_one,
    painted_bands_light_up_the_patches_that_the_layout_names,
    knocked_out_patches_have_no_influence_on_other_image_tokens,
    bidirectional_image_attention_is_a_softmax_written_by_hand,
    eager_attention_computes_what_sdpa_does,
    greedy_generation_is_recomputation_without_a_cache,
    its_line_in_the_table_is_true,
)


@pytest.mark.parametrize("reader", CAN, ids=["-".join(reader) for reader in CAN])
def test_family(reader, subtests):
    """One item for all checks of a family, so that it is written and loaded once."""
    for check in CHECKS:
        with subtests.test(check.__name__.replace("_", " ")):
            check(reader)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
