"""Tiny LLaVA checkpoints of real transformers classes, random and complete, written to disk in a second.

Vision towers CLIP, SigLIP and DINOv2 (with or without registers), a Llama of four layers, the real image processors and
tokenizer. Weights are wider than transformers initialises them, so that attention is not uniform and moves something.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from segbench.specs import ModelSpec

Tower = Literal["clip", "clip-pad", "siglip", "dinov2", "dinov2-registers"]
TOWERS: tuple[Tower, ...] = ("clip", "clip-pad", "siglip", "dinov2", "dinov2-registers")
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "what", "is", "this", "a", "red", "cat")
IMAGE = WORDS.index("<image>")
REGISTERS = 2


def write(folder: Path, tower: Tower = "clip", *, seed: int = 0, **config: Any) -> Path:
    """A checkpoint in `folder`; `config` goes to LlavaConfig (`image_attention` among others)."""
    build(tower, seed=seed, **config).save_pretrained(folder)
    processor(tower).save_pretrained(folder)
    return folder


def spec(folder: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(name="tiny", adapter="llava", weights=folder, **{"prompt": "USER: <image> what is this", **fields})


def build(tower: Tower = "clip", *, seed: int = 0, **config: Any) -> LlavaForConditionalGeneration:
    """A random LLaVA: 4 vision layers of width 32 and 4 LLM layers of width 48 with grouped queries."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": _strategy(tower), **config}
    settings |= {"image_token_id": IMAGE, "pad_token_id": 0}
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=_vision(tower), text_config=text, **settings))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.8 / parameter.shape[-1] ** 0.5)
    return model.eval()


def processor(tower: Tower = "clip") -> LlavaProcessor:
    side = _side(tower)
    square = {"height": side, "width": side}
    crop = {"size": {"shortest_edge": side}, "crop_size": square}
    images = {
        "clip": lambda: CLIPImageProcessorPil(**crop),
        "clip-pad": lambda: LlavaImageProcessorPil(**crop, do_pad=True),
        "siglip": lambda: SiglipImageProcessorPil(size=square),
        "dinov2": lambda: BitImageProcessorPil(**crop),
        "dinov2-registers": lambda: BitImageProcessorPil(**crop),
    }[tower]()
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy=_strategy(tower),
        num_additional_image_tokens={"siglip": 0, "dinov2-registers": 1 + REGISTERS}.get(tower, 1),
        image_token="<image>",  # noqa: S106
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, <s> in front."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def _vision(tower: Tower) -> Any:
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": _side(tower),
    }
    if tower == "siglip":
        return SiglipVisionConfig(**size, intermediate_size=64, vision_use_head=False)
    if tower == "dinov2":
        return Dinov2Config(**size, mlp_ratio=2)
    if tower == "dinov2-registers":
        return Dinov2WithRegistersConfig(**size, mlp_ratio=2, num_register_tokens=REGISTERS)
    return CLIPVisionConfig(**size, intermediate_size=64)


def _side(tower: Tower) -> int:
    return 52 if tower == "siglip" else 48  # SigLIP as at 384/14: the last four pixels belong to no patch


def _strategy(tower: Tower) -> str:
    return "full" if tower == "siglip" else "default"
