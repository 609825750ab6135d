"""Tiny checkpoints of every family, random and complete, in the format of the real repositories.

Real transformers classes: four vision layers of width 32, four LLM layers of width 48, the real image processors at a
small picture, one token per word. What a family calls its image, and what it writes around it, is as in its real
checkpoints: in the tokenizer, the processor's own keys and the chat template. Weights are wider than transformers
initialises them, so that attention is not uniform and moves something.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers as hf
from packaging.version import Version
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Settings = dict[str, Any]

QUESTION = "what is this"
WORDS = (
    "what is this a red cat the you are helpful assistant. You language and vision "
    "system user assistant model User: Assistant: USER: ASSISTANT:"
)
WIDTH, DEPTH, HEADS = 48, 4, 4
TEXT: Settings = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
VISION: Settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


@dataclass(frozen=True)
class Toy:
    """A checkpoint in memory, before its weights are widened."""

    model: PreTrainedModel
    images: Any  # the PIL image processor
    tokens: PreTrainedTokenizerFast
    processor: str  # name of the processor's class, which may need a video processor and so cannot be made here
    own: Mapping[str, Any] = field(default_factory=dict)  # the processor's own keys


@dataclass(frozen=True)
class Family:
    """One family, or a variant of one; `build` takes what the model's config shall say beyond or instead of it."""

    name: str  # the config's model_type; variants have a suffix after a hyphen
    build: Callable[..., Toy]
    template: str  # jinja, a miniature of what the real checkpoints have
    prompt: str = f"USER: <image> {QUESTION}"
    minimum: str = "5.17.0"  # the first version of transformers that has it


def write(name: str, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """The checkpoint of a family in `folder`; `config` goes to the model's config."""
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = family.build(**config)
        _widen(toy.model)
    toy.model.save_pretrained(folder)
    toy.images.save_pretrained(folder)
    toy.tokens.save_pretrained(folder)
    own = {"processor_class": toy.processor, **toy.own}  # without the parts, as on the hub: they have their own files
    (folder / "processor_config.json").write_text(json.dumps(own, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    return folder


def _widen(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                inputs = parameter.shape[-1] if parameter.ndim <= 3 else parameter[0].numel()  # of a convolution: all
                parameter.add_(torch.randn(parameter.shape) * 0.8 / inputs**0.5)
            elif parameter.numel() == 1:
                parameter.fill_(0.5)  # gates that start at 0 would hide what they let through


def _tokenizer(
    eos: str, pad: str, *special: str, bos: str | None = None, named: Mapping[str, str] = MappingProxyType({})
) -> PreTrainedTokenizerFast:
    """One token per word, the special ones first; `named` ones are attributes of the tokenizer, as `image_token`."""
    first = [word for word in dict.fromkeys((pad, bos, eos, "<unk>", *named.values(), *special)) if word]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*first, *WORDS.split()]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in first])
    if bos:
        start = [(bos, vocabulary[bos])]
        words.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=start)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens=dict(named),
        padding_side="left",
    )


def _chat(image: str, *, user: str, end: str = "", reply: str, head: str = "", first: bool = False) -> str:
    """A chat template: `head`, then every message, `image` where it stands (or, if `first`, before all text).

    `head` is jinja; so is `user`, what opens a message that is not the assistant's.
    """
    loop, said = "{%% for part in message['content'] if part['type'] == '%s' %%}%s{%% endfor %%}", "{{ part['text'] }}"
    if first:
        parts = loop % ("image", _say(image)) + loop % ("text", said)
    else:
        other = "{% elif part['type'] == 'text' %}" + said + "{% endif %}"
        parts = "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + _say(image) + other
        parts += "{% endfor %}"
    content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + parts + "{% endif %}"
    opens = "{% if message['role'] == 'assistant' %}" + _say(reply) + "{% else %}" + user + "{% endif %}"
    messages = "{% for message in messages %}" + opens + content + _say(end) + "{% endfor %}"
    return head + messages + "{% if add_generation_prompt %}" + _say(reply) + "{% endif %}"


def _chatml(image: str, **how: Any) -> str:
    user = _say("<|im_start|>") + "{{ message['role'] }}" + _say("\n")
    return _chat(image, user=user, end="<|im_end|>\n", reply="<|im_start|>assistant\n", **how)


def _say(text: str) -> str:
    """Jinja that writes this text; as it stands, a line break after a block would be lost."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"


def _text(tokens: PreTrainedTokenizerFast) -> Settings:
    """What the config of every LLM says."""
    ends = {"pad": tokens.pad_token_id, "bos": tokens.bos_token_id, "eos": tokens.eos_token_id}
    return {**TEXT, **{f"{end}_token_id": number for end, number in ends.items()}, "vocab_size": len(tokens)}


def _ids(tokens: PreTrainedTokenizerFast, words: Mapping[str, str]) -> Settings:
    """Config keys whose values are the numbers of these tokens."""
    return {key: tokens.convert_tokens_to_ids(word) for key, word in words.items()}


def _cropped(side: int) -> Settings:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _square(side: int) -> Settings:
    return {"size": {"height": side, "width": side}}


_IMAGE = {"image_token": "<image>"}
_IMAGE_ID = {"image_token_id": "<image>"}
_IMAGE_VIDEO = {**_IMAGE, "video_token": "<video>"}
_IMAGE_VIDEO_ID = {**_IMAGE_ID, "video_token_id": "<video>"}
_CLIP_48: Settings = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    **_IMAGE,
}
_VICUNA = _chat("<image>\n", user=_say("USER: "), end=" ", reply="ASSISTANT:", first=True)


def _vicuna(*special: str) -> PreTrainedTokenizerFast:
    return _tokenizer("</s>", "<pad>", *special, bos="<s>", named=_IMAGE)


def _clip() -> Any:
    return hf.CLIPVisionConfig(**VISION, image_size=48, patch_size=8)


def _siglip(side: int = 48) -> Any:
    return hf.SiglipVisionConfig(**VISION, image_size=side, patch_size=8, vision_use_head=False)


def _llava(**config: Any) -> Toy:
    tokens = _vicuna()
    settings = hf.LlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_ID), "image_seq_length": 36, **config},
    )
    images = hf.CLIPImageProcessorPil(**_cropped(48))
    return Toy(hf.LlavaForConditionalGeneration(settings), images, tokens, "LlavaProcessor", {**_CLIP_48, **_IMAGE})


def _llava_next(**config: Any) -> Toy:
    tokens = _vicuna()
    tiles: Settings = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]}
    settings = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_ID), "image_seq_length": 36, **tiles, **config},
    )
    images = hf.LlavaNextImageProcessorPil(**_cropped(48), **tiles)
    return Toy(
        hf.LlavaNextForConditionalGeneration(settings), images, tokens, "LlavaNextProcessor", {**_CLIP_48, **_IMAGE}
    )


def _qwen(*special: str, named: Mapping[str, str] = MappingProxyType({})) -> PreTrainedTokenizerFast:
    return _tokenizer("<|im_end|>", "<|endoftext|>", "<|im_start|>", *special, named=named)


def _llava_onevision(**config: Any) -> Toy:
    tokens = _qwen(named=_IMAGE_VIDEO)
    # 52 pixels and patches of 8, as 384 and 14: the last pixels of the canvas belong to no patch.
    tiles: Settings = {"image_grid_pinpoints": [[52, 52], [52, 104], [104, 52], [104, 104], [52, 156], [156, 52]]}
    settings = hf.LlavaOnevisionConfig(
        vision_config=_siglip(52),
        text_config=hf.Qwen2Config(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_VIDEO_ID), **tiles, **config},
    )
    images = hf.LlavaOnevisionImageProcessorPil(**_square(52), **tiles)
    own = {"num_image_tokens": 36, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    model = hf.LlavaOnevisionForConditionalGeneration(settings)
    return Toy(model, images, tokens, "LlavaOnevisionProcessor", {**own, **_IMAGE_VIDEO})


_DEEPSEEK_ID = {"image_token_id": "<image_placeholder>"}
_HALF: Settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_DEEPSEEK = _chat(
    "<image_placeholder>",
    head=_say("You are a helpful language and vision assistant.\n\n"),
    user=_say("User: "),
    end="\n\n",
    reply="Assistant:",
)


def _deepseek() -> PreTrainedTokenizerFast:
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return _tokenizer(eos, "<｜▁pad▁｜>", bos=bos, named={"image_token": "<image_placeholder>"})


def _deepseek_vl(**config: Any) -> Toy:
    tokens = _deepseek()
    settings = hf.DeepseekVLConfig(
        vision_config=_siglip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _DEEPSEEK_ID), "tie_word_embeddings": False, **config},
    )
    images = hf.DeepseekVLImageProcessorPil(**_square(48), **_HALF)
    model = hf.DeepseekVLForConditionalGeneration(settings)
    return Toy(model, images, tokens, "DeepseekVLProcessor", {"num_image_tokens": 36})


def _deepseek_vl_hybrid(**config: Any) -> Toy:
    tokens = _deepseek()
    sam = hf.SamVisionConfig(
        hidden_size=32,
        mlp_dim=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        output_channels=16,
        image_size=128,
        patch_size=8,
        window_size=6,  # does not divide the 16 patches, as 14 does not divide 64
        global_attn_indexes=[1, 3],
    )
    settings = hf.DeepseekVLHybridConfig(
        vision_config=_siglip(),
        high_res_vision_config=sam,
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _DEEPSEEK_ID), "tie_word_embeddings": False, **config},
    )
    high: Settings = _square(128)["size"]
    images = hf.DeepseekVLHybridImageProcessorPil(**_square(48), **_HALF, high_res_size=high)
    model = hf.DeepseekVLHybridForConditionalGeneration(settings)
    return Toy(model, images, tokens, "DeepseekVLHybridProcessor", {"num_image_tokens": 36})


_QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_SYSTEM = _say("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
_QWEN_CHAT = _chatml(_QWEN_IMAGE, head="{% if messages[0]['role'] != 'system' %}" + _SYSTEM + "{% endif %}")
_MROPE: Settings = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
_QWEN_VISION: Settings = {"depth": 4, "hidden_size": 32, "num_heads": 4, "patch_size": 8}
_PIXELS: Settings = {"min_pixels": 96 * 96, "max_pixels": 160 * 160}


def _qwen2_5_vl(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values())
    settings = hf.Qwen2_5_VLConfig(
        vision_config={
            **_QWEN_VISION,
            "intermediate_size": 64,
            "out_hidden_size": WIDTH,
            "window_size": 32,  # 2 x 2 merged patches: less than any picture, so that windows are not in raster order
            "fullatt_block_indexes": [1, 3],
        },
        text_config={**_text(tokens), "rope_parameters": dict(_MROPE)},
        **{**_ids(tokens, _QWEN_IDS), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.Qwen2_5_VLForConditionalGeneration(settings), images, tokens, "Qwen2_5_VLProcessor")


_ALL = (
    Family("llava", _llava, _VICUNA),
    Family("llava_next", _llava_next, _VICUNA),
    Family("llava_onevision", _llava_onevision, _chatml("<image>\n", first=True)),
    Family("deepseek_vl", _deepseek_vl, _DEEPSEEK),
    Family("deepseek_vl_hybrid", _deepseek_vl_hybrid, _DEEPSEEK),
    Family("qwen2_5_vl", _qwen2_5_vl, _QWEN_CHAT),
)
FAMILIES = {family.name: family for family in _ALL if Version(hf.__version__) >= Version(family.minimum)}
ABSENT = tuple(family.name for family in _ALL if family.name not in FAMILIES)
