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
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import HunYuanVLImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

Settings = dict[str, Any]

QUESTION = "what is this"
WORDS = (
    "what is this a red cat the you are helpful assistant. You language and vision "
    "system user assistant model : ###Human: User: Assistant: USER: ASSISTANT: Picture 1: "
    "a b c d e f g h i j k l m n o p q r s t u v w x y z Ġ Ċ"  # for tokenizers that are read as bytes whatever they are
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
    videos: Mapping[str, Any] = field(default_factory=dict)  # the video processor's, where it cannot share the images'


@dataclass(frozen=True)
class Family:
    """One family, or a variant of one; `build` takes what the model's config shall say beyond or instead of it."""

    name: str  # the config's model_type; variants have a suffix after a hyphen
    build: Callable[..., Toy]
    template: str | None  # jinja, a miniature of what the real checkpoints have, if they have one
    image: str = "<image>"  # what its processor wants for the image in a text, where no template says it
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
    # Without the parts, as on the hub: they have their own files.
    _write(folder / "processor_config.json", {"processor_class": toy.processor, **toy.own})
    if toy.videos:
        _write(folder / "video_preprocessor_config.json", toy.videos)
    if family.template:
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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


_UNTIED = {"tie_word_embeddings": False}
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
_TILES_48: Settings = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]}
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
    settings = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_ID), "image_seq_length": 36, **_TILES_48, **config},
    )
    images = hf.LlavaNextImageProcessorPil(**_cropped(48), **_TILES_48)
    return Toy(
        hf.LlavaNextForConditionalGeneration(settings), images, tokens, "LlavaNextProcessor", {**_CLIP_48, **_IMAGE}
    )


def _qwen(
    *special: str, bos: str | None = None, named: Mapping[str, str] = MappingProxyType({})
) -> PreTrainedTokenizerFast:
    return _tokenizer("<|im_end|>", "<|endoftext|>", "<|im_start|>", *special, bos=bos, named=named)


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
        **{**_ids(tokens, _DEEPSEEK_ID), **_UNTIED, **config},
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
        **{**_ids(tokens, _DEEPSEEK_ID), **_UNTIED, **config},
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
_EDGES: Settings = {"shortest_edge": 96 * 96, "longest_edge": 160 * 160}  # pixels in all, whatever the key says
_PIXELS: Settings = {"min_pixels": _EDGES["shortest_edge"], "max_pixels": _EDGES["longest_edge"]}


_WINDOWED: Settings = {
    **_QWEN_VISION,
    "intermediate_size": 64,
    "out_hidden_size": WIDTH,
    "window_size": 32,  # 2 x 2 merged patches: less than any picture, so that windows are not in raster order
    "fullatt_block_indexes": [1, 3],
}


def _qwen2_5_vl(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values())
    settings = hf.Qwen2_5_VLConfig(
        vision_config=_WINDOWED,
        text_config={**_text(tokens), "rope_parameters": dict(_MROPE)},
        **{**_ids(tokens, _QWEN_IDS), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.Qwen2_5_VLForConditionalGeneration(settings), images, tokens, "Qwen2_5_VLProcessor")


def _qwen2_vl(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values())
    settings = hf.Qwen2VLConfig(
        vision_config={**_QWEN_VISION, "embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2},
        text_config={**_text(tokens), "rope_parameters": dict(_MROPE)},
        **{**_ids(tokens, _QWEN_IDS), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.Qwen2VLForConditionalGeneration(settings), images, tokens, "Qwen2VLProcessor")


def _qwen3_vl(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values())
    settings = hf.Qwen3VLConfig(
        vision_config={
            **_QWEN_VISION,
            "intermediate_size": 64,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1, 2],  # enter the LLM after its blocks 0 and 1
        },
        text_config={**_text(tokens), "head_dim": 12, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        **{**_ids(tokens, _QWEN_IDS), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_HALF, **_PIXELS)
    return Toy(hf.Qwen3VLForConditionalGeneration(settings), images, tokens, "Qwen3VLProcessor")


def _vipllava(**config: Any) -> Toy:
    tokens = _vicuna()
    layers = {"vision_feature_layers": [-2, -3, -4, 1]}  # the projector takes all of them side by side
    settings = hf.VipLlavaConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_ID), "image_seq_length": 36, **layers, **config},
    )
    images = hf.CLIPImageProcessorPil(**_cropped(48))
    model = hf.VipLlavaForConditionalGeneration(settings)
    return Toy(model, images, tokens, "LlavaProcessor", {**_CLIP_48, **_IMAGE})


def _llava_next_video(**config: Any) -> Toy:
    tokens = _tokenizer("</s>", "<pad>", bos="<s>", named=_IMAGE_VIDEO)
    settings = hf.LlavaNextVideoConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _IMAGE_VIDEO_ID), "image_seq_length": 36, **_TILES_48, **config},
    )
    images = hf.LlavaNextImageProcessorPil(**_cropped(48), **_TILES_48)
    model = hf.LlavaNextVideoForConditionalGeneration(settings)
    videos = {"video_processor_type": "LlavaNextVideoVideoProcessor", **_cropped(48)}
    return Toy(model, images, tokens, "LlavaNextVideoProcessor", {**_CLIP_48, **_IMAGE_VIDEO}, videos)


_INTERN = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
_CUT: Settings = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}


def _internvl(**config: Any) -> Toy:
    tokens = _qwen(named={**_INTERN, "video_token": "<video>"})
    settings = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**VISION, image_size=[96, 96], patch_size=[8, 8]),
        text_config=hf.Qwen2Config(**_text(tokens)),
        **{**_ids(tokens, {"image_token_id": "<IMG_CONTEXT>"}), "image_seq_length": 36, **_UNTIED, **config},
    )
    images = hf.GotOcr2ImageProcessorPil(**_square(96), **_CUT)
    model = hf.InternVLForConditionalGeneration(settings)
    return Toy(model, images, tokens, "InternVLProcessor", {"image_seq_length": 36})


_GEMMA = _chat(
    "<start_of_image>",
    head="{{ bos_token }}",
    user=_say("<start_of_turn>user\n"),
    end="<end_of_turn>\n",
    reply="<start_of_turn>model\n",
)


def _gemma3(**config: Any) -> Toy:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = _tokenizer("<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", bos="<bos>", named=named)
    text = hf.Gemma3TextConfig(
        **{**_text(tokens), "tie_word_embeddings": True},
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=16,  # less than an image
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    )
    ids = {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"}
    settings = hf.Gemma3Config(
        vision_config=_siglip(96),
        text_config=text,
        **{**_ids(tokens, {**ids, "image_token_index": "<image_soft_token>"}), "mm_tokens_per_image": 36, **config},
    )
    images = hf.Gemma3ImageProcessorPil(**_square(96))
    model = hf.Gemma3ForConditionalGeneration(settings)
    return Toy(model, images, tokens, "Gemma3Processor", {"image_seq_length": 36})


def _paligemma(**config: Any) -> Toy:
    tokens = _tokenizer("<eos>", "<pad>", bos="<bos>", named=_IMAGE)
    text = {**_text(tokens), "num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True}
    sizes = {"projection_dim": WIDTH, "hidden_size": WIDTH, "vocab_size": len(tokens)}
    settings = hf.PaliGemmaConfig(
        vision_config=_siglip(),
        text_config=hf.GemmaConfig(**text),
        **{**_ids(tokens, {"image_token_index": "<image>"}), **sizes, **config},
    )
    images = hf.SiglipImageProcessorPil(**_square(48), image_seq_length=36)
    return Toy(hf.PaliGemmaForConditionalGeneration(settings), images, tokens, "PaliGemmaProcessor")


_TURNS: Settings = {"user": "{{ message['role'].capitalize() }}:", "end": "<end_of_utterance>\n", "reply": "Assistant:"}
_IDEFICS = _chat("<image>", head="{{ bos_token }}", **_TURNS)
_SMOL = _chat("<image>", head=_say("<|im_start|>"), **_TURNS)  # its tokenizer puts nothing in front
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_SPLIT: Settings = {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 96}, "do_image_splitting": True}


def _smolvlm(**config: Any) -> Toy:
    named = {
        **_IMAGE,
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokens = _tokenizer("<end_of_utterance>", "<|im_end|>", "<|im_start|>", *_TILES, named=named)
    settings = hf.SmolVLMConfig(
        vision_config=hf.SmolVLMVisionConfig(**VISION, image_size=96, patch_size=8),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, {**_IMAGE_ID, "pad_token_id": "<|im_end|>"}), "scale_factor": 2, **config},
    )
    images = SmolVLMImageProcessorPil(**_SPLIT)
    return Toy(hf.SmolVLMForConditionalGeneration(settings), images, tokens, "SmolVLMProcessor", {"image_seq_len": 36})


def _idefics3(**config: Any) -> Toy:
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_TILES)
    tokens = _tokenizer("<|end_of_text|>", "<|finetune_right_pad_id|>", *special, bos="<|begin_of_text|>")
    settings = hf.Idefics3Config(
        vision_config=hf.Idefics3VisionConfig(**VISION, image_size=96, patch_size=8),
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, {**_IMAGE_ID, "pad_token_id": "<|finetune_right_pad_id|>"}), "scale_factor": 2, **config},
    )
    images = Idefics3ImageProcessorPil(**_SPLIT)
    model = hf.Idefics3ForConditionalGeneration(settings)
    return Toy(model, images, tokens, "Idefics3Processor", {"image_seq_len": 36})


_MISTRAL = _chat("[IMG]", head="{{ bos_token }}", user=_say("[INST]"), end="[/INST]", reply="")
_PIXTRAL: Settings = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}


def _mistral() -> PreTrainedTokenizerFast:
    return _tokenizer("</s>", "<pad>", "[INST]", "[/INST]", *_PIXTRAL.values(), bos="<s>")


def _pixtral(side: int) -> Any:
    return hf.PixtralVisionConfig(**{**VISION, "head_dim": 8, "image_size": side, "patch_size": 8})


def _mistral3(**config: Any) -> Toy:
    tokens = _mistral()
    settings = hf.Mistral3Config(
        vision_config=_pixtral(112),
        text_config=hf.MistralConfig(**{**_text(tokens), "head_dim": 12, "sliding_window": None}),
        **{**_ids(tokens, {"image_token_index": "[IMG]"}), "spatial_merge_size": 2, **_UNTIED, **config},
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=8)
    own = {"patch_size": 8, "spatial_merge_size": 2, **_PIXTRAL}
    return Toy(hf.Mistral3ForConditionalGeneration(settings), images, tokens, "PixtralProcessor", own)


def _llava_pixtral(**config: Any) -> Toy:
    tokens = _mistral()
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    settings = hf.LlavaConfig(
        vision_config=_pixtral(64),
        text_config=hf.MistralConfig(**{**_text(tokens), "head_dim": 12, "sliding_window": None}),
        **{**_ids(tokens, {"image_token_id": "[IMG]"}), "image_seq_length": 1, **features, **config},
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    own = {"patch_size": 8, **_PIXTRAL}
    return Toy(hf.LlavaForConditionalGeneration(settings), images, tokens, "PixtralProcessor", own)


_AYA = _chat(
    "<image>",
    head="{{ bos_token }}",
    user=_say("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"),
    end="<|END_OF_TURN_TOKEN|>",
    reply="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)


def _aya_vision(**config: Any) -> Toy:
    turns = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
    image = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")
    tiles = ("TILE", "TILE_GLOBAL", "_1", "_2", "_3", "_4")
    tokens = _tokenizer("<|END_OF_TURN_TOKEN|>", "<PAD>", *turns, *image, *tiles, bos="<BOS_TOKEN>")
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
    settings = hf.AyaVisionConfig(
        vision_config=_siglip(96),
        text_config=hf.Cohere2Config(**{**_text(tokens), **layers, "tie_word_embeddings": True}),
        **{**_ids(tokens, {"image_token_index": "<|IMG_PATCH|>"}), "downsample_factor": 2, **config},
    )
    images = hf.GotOcr2ImageProcessorPil(**_square(96), **_CUT)
    own = {"patch_size": 8, "img_size": 96, "downsample_factor": 2, "image_token": "<image>"}
    return Toy(hf.AyaVisionForConditionalGeneration(settings), images, tokens, "AyaVisionProcessor", own)


def _got_ocr2(**config: Any) -> Toy:
    tokens = _qwen("<img>", "</img>", "<imgpad>")
    vision = hf.GotOcr2VisionConfig(
        hidden_size=32,
        mlp_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        output_channels=16,
        image_size=128,
        patch_size=2,  # the processor knows of 16 x 16 tokens only
        window_size=14,
        global_attn_indexes=[],  # 4096 patches among each other would take a second
    )
    settings = hf.GotOcr2Config(
        vision_config=vision,
        text_config=hf.Qwen2Config(**_text(tokens)),
        **{**_ids(tokens, {"image_token_index": "<imgpad>"}), "image_seq_length": 256, **_UNTIED, **config},
    )
    images = hf.GotOcr2ImageProcessorPil(**_square(128))
    return Toy(hf.GotOcr2ForConditionalGeneration(settings), images, tokens, "GotOcr2Processor")


def _janus(**config: Any) -> Toy:
    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    tokens = _tokenizer(eos, "<｜▁pad▁｜>", "<|User|>", "<|Assistant|>", bos=bos, named=named)
    vision = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    drawing = hf.JanusVQVAEConfig(  # what draws pictures; the smallest that its group norms allow
        base_channels=32,
        latent_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        embed_dim=8,
        num_embeddings=32,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
    )
    settings = hf.JanusConfig(
        vision_config=hf.JanusVisionConfig(
            **vision, mlp_ratio=2.0, image_size=48, patch_size=8, projection_dim=WIDTH, num_image_tokens=36
        ),
        vq_config=drawing,
        text_config=hf.LlamaConfig(**_text(tokens)),
        **{**_ids(tokens, _DEEPSEEK_ID), **_UNTIED, **config},
    )
    images = hf.JanusImageProcessorPil(**_square(48), **_HALF)
    return Toy(hf.JanusForConditionalGeneration(settings), images, tokens, "JanusProcessor", {"num_image_tokens": 36})


_JANUS = _chat(
    "<image_placeholder>\n",
    head=_say("You are a helpful language and vision assistant.\n\n"),
    user=_say("<|User|>: "),
    end="\n\n",
    reply="<|Assistant|>:",
)


def _ovis2(**config: Any) -> Toy:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokens = _qwen("<image>", "<IMG_ATOM>", *marks)
    vision = hf.Ovis2VisionConfig(**VISION, image_size=96, patch_size=8, vocab_size=64, hidden_stride=2)
    sizes = {"hidden_size": WIDTH, "vocab_size": len(tokens)}
    image = tokens.convert_tokens_to_ids("<IMG_ATOM>")
    ids = {"visual_indicator_token_ids": tokens.convert_tokens_to_ids(list(marks)), "image_token_id": image}
    settings = hf.Ovis2Config(
        vision_config=vision, text_config=hf.Qwen2Config(**_text(tokens)), **{**ids, **sizes, **_UNTIED, **config}
    )
    images = Ovis2ImageProcessorPil(**_square(96), **_CUT)
    own = {"image_token": "<image>", "image_seq_length": 36}
    return Toy(hf.Ovis2ForConditionalGeneration(settings), images, tokens, "Ovis2Processor", own)


def _lighton_ocr(**config: Any) -> Toy:
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokens = _qwen("<|vision_start|>", named=named)
    settings = hf.LightOnOcrConfig(
        vision_config=_pixtral(112),
        text_config=hf.Qwen3Config(**_text(tokens), head_dim=12),
        **{**_ids(tokens, {"image_token_id": "<|image_pad|>"}), "spatial_merge_size": 2, **_UNTIED, **config},
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=8)
    own = {"patch_size": 8, "spatial_merge_size": 2}
    return Toy(hf.LightOnOcrForConditionalGeneration(settings), images, tokens, "LightOnOcrProcessor", own)


_GLM: Settings = {"image_token": "<|image|>", "video_token": "<|video|>"}
_GLM_IDS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
_GLM_CHAT = _chat(
    "<|begin_of_image|><|image|><|end_of_image|>",
    head=_say("[gMASK]<sop>"),
    user="<|{{ message['role'] }}|>" + _say("\n"),
    reply="<|assistant|>\n",
)
_GLM_VISION: Settings = {**_QWEN_VISION, "intermediate_size": 64, "out_hidden_size": WIDTH, "image_size": 96}
_GLM_SIZE = {"shortest_edge": 2 * 96 * 96, "longest_edge": 2 * 160 * 160}  # pixels of two frames
_GLM_PIXELS: Settings = {"patch_size": 8, "size": _GLM_SIZE}
_GLM_ROPE: Settings = {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1]}


def _glm() -> PreTrainedTokenizerFast:
    roles = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>")
    return _tokenizer("<|user|>", "<|endoftext|>", *roles, *_GLM_IDS.values(), named=_GLM)


def _glm4v(**config: Any) -> Toy:
    tokens = _glm()
    settings = hf.Glm4vConfig(
        vision_config=_GLM_VISION,
        text_config={**_text(tokens), "rope_parameters": dict(_GLM_ROPE)},
        **{**_ids(tokens, _GLM_IDS), **config},
    )
    images = hf.Glm4vImageProcessorPil(**_GLM_PIXELS)
    return Toy(hf.Glm4vForConditionalGeneration(settings), images, tokens, "Glm4vProcessor")


def _glm46v(**config: Any) -> Toy:
    tokens = _glm()
    settings = hf.Glm46VConfig(
        vision_config=hf.Glm4vVisionConfig(**_GLM_VISION),
        text_config=hf.Glm4vTextConfig(**{**_text(tokens), "rope_parameters": dict(_GLM_ROPE)}),
        **{**_ids(tokens, _GLM_IDS), **config},
    )
    images = hf.Glm46VImageProcessorPil(**_GLM_PIXELS)
    return Toy(hf.Glm46VForConditionalGeneration(settings), images, tokens, "Glm46VProcessor")


def _glm_ocr(**config: Any) -> Toy:
    tokens = _glm()
    rope = {**_MROPE, "partial_rotary_factor": 1.0}
    settings = hf.GlmOcrConfig(
        vision_config=_GLM_VISION,
        text_config={**_text(tokens), "head_dim": 12, "rope_parameters": rope},
        **{**_ids(tokens, _GLM_IDS), **config},
    )
    images = hf.Glm46VImageProcessorPil(**_GLM_PIXELS)
    return Toy(hf.GlmOcrForConditionalGeneration(settings), images, tokens, "Glm46VProcessor")


def _video_llama_3(**config: Any) -> Toy:
    tokens = _qwen("<|image_pad|>", "<|video_pad|>")
    ids = _ids(tokens, {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"})
    settings = hf.VideoLlama3Config(
        vision_config=hf.VideoLlama3VisionConfig(**VISION, patch_size=8),
        text_config=hf.Qwen2Config(**_text(tokens)),
        **{**ids, **config},
    )
    images = hf.VideoLlama3ImageProcessorPil(patch_size=8, min_pixels=48 * 48, max_pixels=80 * 80)
    return Toy(hf.VideoLlama3ForConditionalGeneration(settings), images, tokens, "VideoLlama3Processor")


_ERNIE_IMAGE = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
_ERNIE: Settings = {"head": _say("<|begin_of_sentence|>"), "user": _say("User: "), "end": "\n", "reply": "Assistant: "}


def _paddleocr_vl(**config: Any) -> Toy:
    special = ("<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>")
    tokens = _tokenizer("</s>", "<unk>", *special, named={"image_token": "<|IMAGE_PLACEHOLDER|>"})
    names = {
        "image_token_id": "<|IMAGE_PLACEHOLDER|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|IMAGE_START|>",
        "vision_end_token_id": "<|IMAGE_END|>",
    }
    settings = hf.PaddleOCRVLConfig(
        vision_config={**VISION, "image_size": 96, "patch_size": 8},
        text_config={**_text(tokens), "head_dim": 12, "rope_parameters": dict(_MROPE)},
        **{**_ids(tokens, names), **_UNTIED, **config},
    )
    images = hf.PaddleOCRVLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.PaddleOCRVLForConditionalGeneration(settings), images, tokens, "PaddleOCRVLProcessor")


def _ernie4_5_vl_moe(**config: Any) -> Toy:
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|video_pad|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tokens = _tokenizer("</s>", "<unk>", "<|begin_of_sentence|>", named=named)
    experts = {"moe_intermediate_size": [32, 16], "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}
    settings = hf.Ernie4_5_VLMoeConfig(
        vision_config={**_QWEN_VISION, "intermediate_size": 64},
        text_config={**_text(tokens), **experts, "rope_parameters": dict(_MROPE)},
        **{**_ids(tokens, {f"{key}_id": word for key, word in named.items()}), **_UNTIED, **config},
    )
    images = hf.Ernie4_5_VLMoeImageProcessorPil(patch_size=8, size=_EDGES)
    videos = {
        "video_processor_type": "Ernie4_5_VLMoeVideoProcessor",
        "patch_size": 8,
        "temporal_patch_size": 2,
        "draw_on_frames": False,  # which takes a font beside the weights
    }
    model = hf.Ernie4_5_VLMoeForConditionalGeneration(settings)
    return Toy(model, images, tokens, "Ernie4_5_VLMoeProcessor", videos=videos)


def _granite4_vision(**config: Any) -> Toy:
    roles = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")
    tokens = _tokenizer("<|end_of_text|>", "<|pad|>", *roles, named=_IMAGE)
    tiles: Settings = {"image_grid_pinpoints": [[96, 192], [192, 96], [192, 192]]}
    features = {
        "vision_feature_select_strategy": "full",
        "downsample_rate": "2/4",  # windows of 4 x 4 patches become 2 x 2 tokens
        "deepstack_layer_map": [[-3, 0], [-1, 1]],
        "spatial_vision_layer": -2,
        "spatial_target_layers": [1, 2, 3],
    }
    vision = {**VISION, "hidden_size": 64, "image_size": 96, "patch_size": 8, "vision_use_head": False}
    text = {**_text(tokens), "attention_multiplier": 12**-0.5}
    former = {"model_type": "blip_2_qformer", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    former |= {"intermediate_size": 64, "encoder_hidden_size": 64, "cross_attention_frequency": 1}
    settings = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision),  # its Q-Former has one head for 64 channels
        text_config=hf.Granite4VisionTextConfig(**text),
        qformer_config=former,
        **{**_ids(tokens, {"image_token_index": "<image>"}), **features, **tiles, **config},
    )
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 96}, crop_size=_square(96)["size"], **tiles)
    own = {"patch_size": 8, "vision_feature_select_strategy": "full", "downsample_rate": "2/4", **_IMAGE}
    return Toy(hf.Granite4VisionForConditionalGeneration(settings), images, tokens, "Granite4VisionProcessor", own)


_GRANITE = _chat(
    "<image>\n",
    user=_say("<|start_of_role|>user<|end_of_role|>"),
    end="<|end_of_text|>\n",
    reply="<|start_of_role|>assistant<|end_of_role|>",
)


def _qianfan_ocr(**config: Any) -> Toy:
    tokens = _qwen("<image>", named=_INTERN)
    settings = hf.QianfanOCRConfig(
        vision_config={**VISION, "image_size": [96, 96], "patch_size": [8, 8]},
        text_config=hf.Qwen3Config(**{**_text(tokens), "head_dim": 12}),
        **{**_ids(tokens, {"image_token_id": "<IMG_CONTEXT>"}), "image_seq_length": 36, **config},
    )
    images = hf.GotOcr2ImageProcessorPil(**_square(96), **_CUT)
    own = {"image_seq_length": 36, "image_placeholder_token": "<image>"}
    return Toy(hf.QianfanOCRForConditionalGeneration(settings), images, tokens, "QianfanOCRProcessor", own)


def _exaone4_5(**config: Any) -> Toy:
    special = ("[|user|]", "[|assistant|]", "<vision>", "</vision>", "<|image_pad|>", "<|video_pad|>")
    tokens = _tokenizer("[|endofturn|]", "[PAD]", *special, bos="[BOS]")
    text = {**_text(tokens), "sliding_window": 16, "sliding_window_pattern": 4}
    ids = _ids(tokens, {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"})
    settings = hf.Exaone4_5_Config(
        vision_config={**_WINDOWED, "num_key_value_heads": 2}, text_config=hf.Exaone4Config(**text), **{**ids, **config}
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.Exaone4_5_ForConditionalGeneration(settings), images, tokens, "Exaone4_5_Processor")


_EXAONE = _chat(
    "<vision><|image_pad|></vision>", user=_say("[|user|]\n"), end="[|endofturn|]\n", reply="[|assistant|]\n"
)


def _qwen3_5(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values())
    linear = {  # three of four layers have no attention
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 12,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    rope = {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    vision = {**_QWEN_VISION, "intermediate_size": 64, "out_hidden_size": WIDTH, "num_position_embeddings": 64}
    settings = hf.Qwen3_5Config(
        vision_config=vision,
        text_config={**_text(tokens), **linear, "head_dim": 24, "rope_parameters": rope},
        **{**_ids(tokens, _QWEN_IDS), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_HALF, **_PIXELS)
    return Toy(hf.Qwen3_5ForConditionalGeneration(settings), images, tokens, "Qwen3VLProcessor")


def _hunyuan_vl(**config: Any) -> Toy:
    named = {
        "image_token": "<｜hy_place▁holder▁no▁102｜>",
        "image_start_token": "<｜hy_place▁holder▁no▁100｜>",
        "image_end_token": "<｜hy_place▁holder▁no▁101｜>",
    }
    newline, user = "<｜hy_place▁holder▁no▁103｜>", "<｜hy_User｜>"
    tokens = _tokenizer(
        "<｜hy_Assistant｜>", "<｜hy_▁pad▁｜>", newline, user, bos="<｜hy_begin▁of▁sentence｜>", named=named
    )
    ids = {
        "image_token_id": named["image_token"],
        "im_start_id": named["image_start_token"],
        "im_end_id": named["image_end_token"],
        "im_newline_id": newline,
    }
    vision = {**VISION, "out_hidden_size": WIDTH, "patch_size": 8, "max_image_size": 160, "min_image_size": 96}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 1, 1]}
    settings = hf.HunYuanVLConfig(
        vision_config={**vision, "img_max_token_num": 128, "max_vit_seq_len": 512},
        text_config={**_text(tokens), "head_dim": 12, "rope_parameters": rope},
        **{**_ids(tokens, ids), **_UNTIED, **config},
    )
    images = HunYuanVLImageProcessorPil(patch_size=8, **_PIXELS)
    return Toy(hf.HunYuanVLForConditionalGeneration(settings), images, tokens, "HunYuanVLProcessor")


_HUNYUAN = _chat(
    "<｜hy_place▁holder▁no▁100｜><｜hy_place▁holder▁no▁102｜><｜hy_place▁holder▁no▁101｜>",
    head="{{ bos_token }}",
    user="",
    end="<｜hy_User｜>",
    reply="",
)


def _gemma4(**config: Any) -> Toy:
    named = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    sound = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokens = _tokenizer("<eos>", "<pad>", "<|turn>", "<turn|>", "<|video|>", bos="<bos>", named={**named, **sound})
    text = {
        **_text(tokens),
        "tie_word_embeddings": True,
        "head_dim": 12,
        "global_head_dim": 24,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": len(tokens),
        "hidden_size_per_layer_input": 8,
    }
    vision = {
        **VISION,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "patch_size": 8,
        "position_embedding_size": 64,
        "pooling_kernel_size": 3,
    }
    ids = {f"{key}_id": word for key, word in {**named, **sound, "video_token": "<|video|>"}.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    settings = hf.Gemma4Config(vision_config=vision, text_config=text, **{**_ids(tokens, ids), **config})
    images = hf.Gemma4ImageProcessorPil(patch_size=8, max_soft_tokens=70)
    return Toy(hf.Gemma4ForConditionalGeneration(settings), images, tokens, "Gemma4Processor", {"image_seq_length": 70})


_GEMMA_4 = _chat(
    "<|image|>", head="{{ bos_token }}", user=_say("<|turn>user\n"), end="<turn|>\n", reply="<|turn>model\n"
)


_CLOVA = _chatml("<|image_start|><|image_pad|><|image_end|>")


def _hyperclovax_vision_v2(**config: Any) -> Toy:
    tokens = _qwen("<|image_start|>", "<|image_end|>", "<|image_pad|>", "<|video_pad|>")
    ids = _ids(tokens, {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"})
    settings = hf.HyperCLOVAXVisionV2Config(
        vision_config=hf.Qwen2_5_VLVisionConfig(**_WINDOWED),
        text_config=hf.HyperCLOVAXConfig(**_text(tokens)),
        **{**ids, **_UNTIED, **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_PIXELS)
    model = hf.HyperCLOVAXVisionV2ForConditionalGeneration(settings)
    return Toy(model, images, tokens, "HyperCLOVAXVisionV2Processor")


def _idefics2(**config: Any) -> Toy:
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    tokens = _tokenizer("</s>", "<pad>", *special, bos="<s>")
    perceiver = {
        "hidden_size": WIDTH,
        "resampler_n_latents": 16,  # as many for any picture, each of all of it
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
    }
    settings = hf.Idefics2Config(
        vision_config={**VISION, "image_size": 96, "patch_size": 8},
        perceiver_config=perceiver,
        text_config=hf.MistralConfig(**{**_text(tokens), "head_dim": 12, "rms_norm_eps": 1e-6}),
        **{**_ids(tokens, _IMAGE_ID), **config},
    )
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96}, do_image_splitting=False)
    model = hf.Idefics2ForConditionalGeneration(settings)
    return Toy(model, images, tokens, "Idefics2Processor", {"image_seq_len": 16})


def _mllama(**config: Any) -> Toy:
    roles = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>")
    tokens = _tokenizer("<|eot_id|>", "<|finetune_right_pad_id|>", *roles, bos="<|begin_of_text|>")
    vision = {
        **VISION,
        "num_global_layers": 2,
        "intermediate_layers_indices": [1, 2],
        "vision_output_dim": 96,
        "image_size": 48,
        "patch_size": 8,
    }
    settings = hf.MllamaConfig(
        vision_config=hf.MllamaVisionConfig(**vision),
        text_config=hf.MllamaTextConfig(**{**_text(tokens), "cross_attention_layers": [1, 3]}),
        **{**_ids(tokens, {"image_token_index": "<|image|>"}), **config},
    )
    images = hf.MllamaImageProcessorPil(**_square(48), max_image_tiles=4)
    return Toy(hf.MllamaForConditionalGeneration(settings), images, tokens, "MllamaProcessor")


_LLAMA_3 = _chat(
    "<|image|>",
    head="{{ bos_token }}",
    user=_say("<|start_header_id|>user<|end_header_id|>\n\n"),
    end="<|eot_id|>",
    reply="<|start_header_id|>assistant<|end_header_id|>\n\n",
)


def _blip_2(**config: Any) -> Toy:
    tokens = _tokenizer("</s>", "<pad>", "<image>")
    text = {"ffn_dim": 96, "word_embed_proj_dim": WIDTH, **_text(tokens)}
    former = {**VISION, "num_hidden_layers": 2, "vocab_size": 32, "cross_attention_frequency": 1}
    settings = hf.Blip2Config(
        vision_config={**VISION, "image_size": 48, "patch_size": 8},
        qformer_config={**former, "encoder_hidden_size": 32},
        text_config=hf.OPTConfig(**text),
        **{**_ids(tokens, {"image_token_index": "<image>"}), "num_query_tokens": 16, **config},
    )
    images = hf.BlipImageProcessorPil(**_square(48))
    return Toy(hf.Blip2ForConditionalGeneration(settings), images, tokens, "Blip2Processor", {"num_query_tokens": 16})


def _lfm3_vl(**config: Any) -> Toy:
    tokens = _qwen(*_QWEN_IDS.values(), bos="<|startoftext|>")
    layers = {"layer_types": ["conv", "sliding_attention", "full_attention", "conv"], "sliding_window": 16}
    vision = {**VISION, "num_key_value_heads": 2, "patch_size": 8}
    settings = hf.Lfm3VlConfig(
        vision_config={**vision, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
        text_config=hf.Lfm3Config(**{**_text(tokens), **layers, "head_dim": 12, "conv_L_cache": 3}),
        **{**_ids(tokens, _QWEN_IDS), "projector_hidden_size": 96, **_UNTIED, **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, **_HALF, **_PIXELS)
    return Toy(hf.Lfm3VlForConditionalGeneration(settings), images, tokens, "Lfm3VlProcessor")


def _kosmos_2_5(**config: Any) -> Toy:
    named = {"image_token": "<s>", "boi_token": "<image>", "eoi_token": "</image>"}
    tokens = _tokenizer("</s>", "<pad>", bos="<s>", named=named)
    vision = {**VISION, "head_dim": 8, "patch_embed_hidden_size": 192, "max_num_patches": 4096}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 1}  # every picture is made 4096 patches
    text = {"embed_dim": WIDTH, "ffn_dim": 96, "layers": DEPTH, "attention_heads": HEADS, "vocab_size": len(tokens)}
    settings = hf.Kosmos2_5Config(
        vision_config=vision, text_config={**text, "max_position_embeddings": 512}, **{"latent_query_num": 16, **config}
    )
    patch: Settings = {"patch_size": {"height": 8, "width": 8}}
    images = hf.Kosmos2_5ImageProcessorPil(**patch)
    model = hf.Kosmos2_5ForConditionalGeneration(settings)
    return Toy(model, images, tokens, "Kosmos2_5Processor", {"num_image_tokens": 16})


_DOTS = _chat("<|img|><|imgpad|><|endofimg|>", user=_say("<|user|>"), reply="<|assistant|>")


def _dots3_note(**config: Any) -> Toy:
    image = ("<|img|>", "<|imgpad|>", "<|endofimg|>")
    tokens = _qwen(*image, "<|video_pad|>", "<|audio_comp_pad|>", "<|user|>", "<|assistant|>")
    vision = {
        **VISION,
        "patch_size": 8,
        "adapter_in_dim": 32,
        "adapter_out_dim": WIDTH,
        "moe_intermediate_size": 16,
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    audio = {
        **VISION,
        "num_hidden_layers": 1,
        "feature_size": 16,
        "downsample_hidden_size": 16,
        "max_position_embeddings": 64,
        "adapter_input_size": 32,
        "adapter_out_dim": WIDTH,
    }
    latent = {
        "head_dim": 12,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 12,
        "num_key_value_heads": HEADS,
        "num_attention_heads": HEADS,
    }
    experts = {
        "moe_intermediate_size": 16,
        "shared_experts_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "index_topk": 32,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "layer_types": ["indexed_attention", "indexed_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 16,
        **{f"swa_{key}": size for key, size in latent.items()},
    }
    ids = {"image_token_id": "<|imgpad|>", "video_token_id": "<|video_pad|>", "audio_token_id": "<|audio_comp_pad|>"}
    settings = hf.Dots3NoteConfig(
        vision_config=vision,
        audio_config=audio,
        text_config={**_text(tokens), **latent, **experts},
        **{**_ids(tokens, ids), **config},
    )
    images = hf.Qwen2VLImageProcessorPil(patch_size=8, temporal_patch_size=1, **_PIXELS)
    return Toy(hf.Dots3NoteForConditionalGeneration(settings), images, tokens, "Dots3NoteProcessor")


_ALL = (
    Family("llava", _llava, _VICUNA),
    Family("llava_next", _llava_next, _VICUNA),
    Family("llava_onevision", _llava_onevision, _chatml("<image>\n", first=True)),
    Family("deepseek_vl", _deepseek_vl, _DEEPSEEK),
    Family("deepseek_vl_hybrid", _deepseek_vl_hybrid, _DEEPSEEK),
    Family("qwen2_5_vl", _qwen2_5_vl, _QWEN_CHAT),
    Family("qwen2_vl", _qwen2_vl, _QWEN_CHAT),
    Family("qwen3_vl", _qwen3_vl, _chatml(_QWEN_IMAGE)),
    Family("vipllava", _vipllava, _chat("<image>\n", user=_say("###Human: "), reply="###Assistant:")),
    Family("llava_next_video", _llava_next_video, _VICUNA),
    Family("llava-pixtral", _llava_pixtral, _MISTRAL),
    Family("internvl", _internvl, _chatml("<IMG_CONTEXT>\n")),
    Family("gemma3", _gemma3, _GEMMA),
    Family("paligemma", _paligemma, None, prompt=f"<image> {QUESTION}"),
    Family("smolvlm", _smolvlm, _SMOL),
    Family("idefics3", _idefics3, _IDEFICS),
    Family("mistral3", _mistral3, _MISTRAL),
    Family("aya_vision", _aya_vision, _AYA),
    Family("got_ocr2", _got_ocr2, _chatml("<img><imgpad></img>\n")),
    Family("janus", _janus, _JANUS),
    Family("ovis2", _ovis2, _chatml("<image>\n", head=_SYSTEM)),
    Family("lighton_ocr", _lighton_ocr, _chatml("<|image_pad|>")),
    Family("glm4v", _glm4v, _GLM_CHAT),
    Family("glm46v", _glm46v, _GLM_CHAT),
    Family("glm_ocr", _glm_ocr, _GLM_CHAT),
    Family("video_llama_3", _video_llama_3, _chatml("<|image_pad|>\n", head=_SYSTEM)),
    Family("paddleocr_vl", _paddleocr_vl, _chat(_ERNIE_IMAGE, **_ERNIE)),
    Family("ernie4_5_vl_moe", _ernie4_5_vl_moe, _chat("Picture 1:" + _ERNIE_IMAGE, **_ERNIE)),
    Family("granite4_vision", _granite4_vision, _GRANITE),
    Family("qianfan_ocr", _qianfan_ocr, _chatml("<image>\n")),
    Family("exaone4_5", _exaone4_5, _EXAONE),
    Family("qwen3_5", _qwen3_5, _chatml(_QWEN_IMAGE)),
    Family("hunyuan_vl", _hunyuan_vl, _HUNYUAN),
    Family("gemma4", _gemma4, _GEMMA_4),
    Family("hyperclovax_vision_v2", _hyperclovax_vision_v2, _CLOVA, minimum="5.18.0"),
    Family("lfm3_vl", _lfm3_vl, _chatml(_QWEN_IMAGE, head="{{ bos_token }}"), minimum="5.23.0"),
    Family("dots3_note", _dots3_note, _DOTS, minimum="5.23.0"),
    # Not a grid of image tokens: resampled, read by cross attention, or asked of by queries.
    Family("idefics2", _idefics2, _chat("<image>", **_TURNS)),
    Family("mllama", _mllama, _LLAMA_3),
    Family("kosmos-2.5", _kosmos_2_5, None, image="", prompt=f"<image> {QUESTION}"),
    Family("blip-2", _blip_2, None, image="", prompt=f"<image> {QUESTION}"),
)
FAMILIES = {family.name: family for family in _ALL if Version(hf.__version__) >= Version(family.minimum)}
ABSENT = tuple(family.name for family in _ALL if family.name not in FAMILIES)
