"""Tiny LLaVA-1.5 checkpoints as the original code and its forks leave them on disk, and the original's own forward.

Weights are random; folders, names, config keys, image preprocessing and the way image features get between the words
are those of haotian-liu/LLaVA (llava_arch.py, mm_utils.py) and of aimagelab/LLaVA-MORE for the towers beside CLIP.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

Tower = Literal["clip", "siglip", "dinov2", "dinov2-registers"]
Layout = Literal["tower inside", "tower stripped", "stage 1"]
TOWERS: tuple[Tower, ...] = ("clip", "siglip", "dinov2", "dinov2-registers")
LAYOUTS: tuple[Layout, ...] = ("tower inside", "tower stripped", "stage 1")
REGISTERS = 4
CUT = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2-registers": 1 + REGISTERS}  # tokens before the patches
WIDTH, DEPTH = 32, 48  # of the tower and of the LLM
SIDE = {"clip": 48, "siglip": 52, "dinov2": 48, "dinov2-registers": 48}  # SigLIP as at 384/14, with a rest
WORDS = ("<unk>", "<s>", "</s>", "USER:", "ASSISTANT:", "what", "is", "this", "a", "red", "cat")
WORDS += tuple(f"word{n}" for n in range(128 - len(WORDS)))  # a whole number of blocks of the CPU's matrix product
PROMPT = "USER: <image> what is this ASSISTANT:"


@dataclass(frozen=True)
class Made:
    """A checkpoint and the modules it was written from."""

    source: Path
    vision: Path  # the tower's own checkpoint
    base: Path | None  # the LLM's, for stage 1
    name: Tower
    tower: nn.Module
    projector: nn.Module
    language: Any
    pads: bool

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """`process_images`."""
        processor = AutoImageProcessor.from_pretrained(self.vision, backend="pil")
        if self.pads:
            image = expand2square(image, tuple(int(x * 255) for x in processor.image_mean))
        return processor(images=image, return_tensors="pt")["pixel_values"]

    def ids(self, prompt: str) -> list[list[int]]:
        """`tokenizer_image_token`: the words around every <image>, the first with <s>."""
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.base or self.source)
        return [tokenizer(part).input_ids[int(n > 0) :] for n, part in enumerate(prompt.split("<image>"))]

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """`feature_select`."""
        return self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, CUT[self.name] :]

    @torch.no_grad()
    def logits(self, pixels: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
        """The projector and `prepare_inputs_labels_for_multimodal`: features between the words."""
        words = [self.language.get_input_embeddings()(torch.tensor([part])) for part in ids]
        between = self.projector(self.features(pixels))
        return self.language(inputs_embeds=torch.cat([words[0], between, words[1]], 1)).logits


def write(
    folder: Path, name: Tower = "clip", layout: Layout = "tower stripped", *, family: str = "llama", **config: Any
) -> Made:
    """A checkpoint of some layout below `folder`; `config` goes into its config.json."""
    torch.manual_seed(0)
    source, vision, base = folder / "source", folder / "tower", folder / "base"
    source.mkdir(parents=True)
    text: dict[str, Any] = {
        "hidden_size": DEPTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    text |= {key: config.pop(key) for key in ("tie_word_embeddings", "rope_scaling", "sliding_window") if key in config}
    written = {
        "model_type": f"llava_{family}",
        "mm_vision_tower": f"published/{name}",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": WIDTH,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "unfreeze_mm_vision_tower": layout == "tower inside",
        **config,
    }
    language = _wide(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **text)))
    linear = written["mm_projector_type"] == "linear"
    first = nn.Linear(WIDTH, DEPTH)
    projector = _wide(first if linear else nn.Sequential(first, nn.GELU(), nn.Linear(DEPTH, DEPTH)))
    tower = _write_tower(vision, name)
    (source / "config.json").write_text(json.dumps({**text, **written}))
    head = {f"model.mm_projector.{key}": one for key, one in projector.state_dict().items()}
    if layout == "stage 1":
        language.save_pretrained(base)
        tokenizer().save_pretrained(base)
        torch.save(head, source / "mm_projector.bin")
    else:
        tokenizer().save_pretrained(source)
        tensors = {**language.state_dict(), **head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
        if layout == "tower inside":
            tensors |= {f"model.vision_tower.vision_tower.{key}": one for key, one in _as_loaded(vision, name).items()}
        write_shards(source, tensors, "bin" if layout == "tower inside" else "safetensors")
    pads = written["image_aspect_ratio"] == "pad"
    return Made(source, vision, base if layout == "stage 1" else None, name, tower, projector, language, pads)


def write_shards(folder: Path, tensors: dict[str, torch.Tensor], suffix: Literal["bin", "safetensors"]) -> None:
    """Two shards and their index."""
    names, stem = sorted(tensors), "pytorch_model" if suffix == "bin" else "model"
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        chosen = {name: tensors[name].clone() for name in part}
        torch.save(chosen, folder / file) if suffix == "bin" else save_file(chosen, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of safetensors."""
    return {name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, <s> in front, no <image>, and <unk> for padding, as LLaVA-1.5 has it."""
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        pad_token="<unk>",  # noqa: S106
        padding_side="right",
    )


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The middle of a square of one colour."""
    width, height = image.size
    square = Image.new(image.mode, (max(image.size), max(image.size)), colour)
    square.paste(image, (0, (width - height) // 2) if width > height else ((height - width) // 2, 0))
    return square


def _write_tower(folder: Path, name: Tower) -> nn.Module:
    """The published checkpoint of a tower, read again by the class that LLaVA or its fork reads it with."""
    size: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 8}
    fixed: dict[str, Any] = {**size, "intermediate_size": 64, "image_size": SIDE[name]}
    other_half: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    free: dict[str, Any] = {**size, "mlp_ratio": 2, "image_size": 72}  # the position embeddings are interpolated
    square = {"height": SIDE[name], "width": SIDE[name]}
    crop: dict[str, Any] = {"size": {"shortest_edge": 56}, "crop_size": square}  # as DINOv2's 256 and 224
    if name == "clip":
        whole, cls = CLIPModel(CLIPConfig(vision_config=fixed, text_config=other_half)), CLIPVisionModel
        images: Any = CLIPImageProcessorPil(size={"shortest_edge": SIDE[name]}, crop_size=square)
    elif name == "siglip":
        whole, cls = SiglipModel(SiglipConfig(vision_config=fixed, text_config=other_half)), SiglipVisionModel
        images = SiglipImageProcessorPil(size=square)
    elif name == "dinov2":
        whole, cls, images = Dinov2Model(Dinov2Config(**free)), Dinov2Model, BitImageProcessorPil(**crop)
    else:
        config = Dinov2WithRegistersConfig(**free, num_register_tokens=REGISTERS)
        whole, cls, images = Dinov2WithRegistersModel(config), Dinov2WithRegistersModel, BitImageProcessorPil(**crop)
    _wide(whole).save_pretrained(folder)
    images.save_pretrained(folder)
    if name == "clip":  # as openai/clip-vit-large-patch14-336, which has no safetensors
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        tower = cls.from_pretrained(folder).eval()
        (folder / "model.safetensors").unlink()
        return tower
    return cls.from_pretrained(folder).eval()


def _as_loaded(folder: Path, name: Tower) -> dict[str, torch.Tensor]:
    """The tower's tensors as LLaVA's own transformers names them, and so as DeepSpeed saves them."""
    if name in ("dinov2", "dinov2-registers"):
        return load_file(folder / "model.safetensors")
    tensors = torch.load(folder / "pytorch_model.bin") if name == "clip" else load_file(folder / "model.safetensors")
    position_ids = {"vision_model.embeddings.position_ids": torch.arange(4)[None]}
    return {key: one for key, one in tensors.items() if key.startswith("vision_model.")} | position_ids


def _wide(module: Any) -> Any:
    """Weights wider than initialised, so that every part moves something."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.add_(torch.randn(parameter.shape) * 0.5 / parameter.shape[-1] ** 0.5)
    return module.eval()
