"""What the original LLaVA code leaves on disk: its config, where the parts lie, and what their tensors are called.

The LLM (`model.layers.*`) and the projector (`model.mm_projector.*`) lie in one folder, or, after stage 1, the
projector alone in mm_projector.bin. The vision tower (`model.vision_tower.vision_tower.*`) lies there too or is the
published one that the config names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from segbench.convert import files
from segbench.errors import MissingInput, ModelError, SpecError

PROJECTOR_FILE = "mm_projector.bin"  # of stage 1
# The LLM in transformers' words, by the model_type of the original.
LANGUAGE = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}

# Original prefixes, and those of llava-hf on disk, which every transformers renames as its version wants.
TOWER, PROJECTOR = "model.vision_tower.vision_tower.", "model.mm_projector."
FIRST, SECOND = "multi_modal_projector.linear_1.", "multi_modal_projector.linear_2."
NAMES = {
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
    "lm_head.": "language_model.lm_head.",
    TOWER: "vision_tower.",
}
PROJECTORS = {
    "mlp2x_gelu": {f"{PROJECTOR}0.": FIRST, f"{PROJECTOR}2.": SECOND},
    "linear": {PROJECTOR: FIRST},  # and a second matrix that changes nothing
}
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
LEFT_OUT = {  # patterns of original names, and why nothing is lost
    r"\brotary_emb\.inv_freq$|\bposition_ids$": "transformers computes it",
    r"^model\.image_newline$": "LLaVA-NeXT's; an image of one tile has no use for it",
    rf"^{re.escape(TOWER)}(vision_model\.)?head\.": "SigLIP's pooling, which LLaVA does not use",
    rf"^{re.escape(TOWER)}(text_model|text_projection|visual_projection|logit_scale|logit_bias)\b": "the other half of "
    "the vision tower's own checkpoint",
}


@dataclass(frozen=True)
class Original:
    """A checkpoint that can be converted, and where its parts lie."""

    config: Mapping[str, Any]  # of the source
    source: Path
    language: Path  # the LLM and its tokenizer
    vision: Path  # the tower's config, image processor and, if the source does not hold them, weights
    projector: str  # its type

    @property
    def family(self) -> str:
        """The LLM's model_type in transformers."""
        return LANGUAGE[self.config["model_type"]]

    @property
    def folders(self) -> dict[str, Path]:
        """Every folder once, by the first part that lies there."""
        named = {self.vision: "vision", self.language: "language", self.source: "source"}
        return {part: folder for folder, part in named.items()}


def find(source: Path, vision: Path | None, base: Path | None) -> Original:
    """The parts of an original checkpoint. MissingInput for one that is not there, SpecError for a `base` of no use,
    ModelError for a part of LoRA training and for the config of another model than LLaVA-1.5."""
    for name in ("adapter_config.json", "non_lora_trainables.bin"):
        if (source / name).is_file():
            raise ModelError(f"{source}: {name} is a part of LoRA training; merge it into its base model first")
    config = files.read_json(source / "config.json")
    _require_convertible(config, source / "config.json")
    whole = bool(files.weight_files(source))
    if not whole and not (source / PROJECTOR_FILE).is_file():
        raise MissingInput(f"{source} holds neither weights (*.safetensors, pytorch_model*.bin) nor mm_projector.bin")
    if whole and base:
        raise SpecError(f"--base: {source} holds an LLM itself; --base is for a folder with mm_projector.bin alone")
    if not whole and base is None:
        raise MissingInput(f"{source} holds a projector alone; name the folder of the LLM below it with --base")
    tower = vision or _cached(config["mm_vision_tower"])
    if tower is None:
        name = config["mm_vision_tower"]
        raise MissingInput(f"{source} was trained on the vision tower {name!r}; name its folder with --vision")
    return Original(config, source, base or source, tower, config.get("mm_projector_type", "linear"))


def mapped(original: Original) -> dict[str, dict[str, Tensor]]:
    """The tensors of `language`, `projector` and `vision` by original names, wherever they lie; none is read yet."""
    language = files.mapped(_weights(original.language))
    projector = {name: language.pop(name) for name in [*language] if name.startswith(PROJECTOR)}
    tower = {name: language.pop(name) for name in [*language] if name.startswith(TOWER)}
    if original.language != original.source:
        if projector or tower:
            raise ModelError(f"--base: {original.language} is a LLaVA itself; name the folder of the LLM alone")
        projector = files.mapped([original.source / PROJECTOR_FILE])
        if strangers := [name for name in projector if not name.startswith(PROJECTOR)]:
            raise ModelError(f"{original.source / 'mm_projector.bin'}: {files.listed(strangers)} is no projector's")
    if not tower:
        if original.config.get("unfreeze_mm_vision_tower"):
            raise ModelError(f"{original.source}: its vision tower was trained, yet the weights are not with it")
        tower = {TOWER + name: one for name, one in files.mapped(_weights(original.vision)).items()}
    return {"language": language, "projector": projector, "vision": tower}


def renamed(
    original: Original, parts: Mapping[str, Mapping[str, Tensor]], wrapped: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by llava-hf's names, and why each of the others is left out. `wrapped`: the tower's lie in vision_model.

    ModelError with the names of those that LLaVA-1.5 does not have, or if there are no token embeddings.
    """
    prefixes = {**NAMES, **PROJECTORS[original.projector]}
    if wrapped:  # newer transformers leave the inner name out, older ones and LLaVA do not
        inner = "vision_tower.vision_model."
        prefixes = {f"{TOWER}vision_model.": inner} | prefixes | {TOWER: inner}
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    for name, one in (item for part in parts.values() for item in part.items()):
        reason = next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, name)), None)
        before = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if reason:
            left_out[name] = reason
        elif before is None:
            unknown.append(name)
        else:
            tensors[prefixes[before] + name.removeprefix(before)] = one
    if unknown:
        raise ModelError(f"{original.source}: LLaVA-1.5 has no {files.listed(unknown)}")
    if EMBEDDINGS not in tensors:
        raise ModelError(f"{original.language}: model.embed_tokens.weight is missing")
    if original.config.get("tie_word_embeddings") and HEAD in tensors:
        if not torch.equal(tensors.pop(HEAD), tensors[EMBEDDINGS]):
            raise ModelError(f"{original.language}: its config ties lm_head to the token embeddings, yet they differ")
        left_out["lm_head.weight"] = "tied to the token embeddings"
    return tensors, left_out


def original_name(name: str, projector: str) -> str:
    """What the original calls a tensor of the loaded transformers model."""
    back = {after: before for before, after in PROJECTORS[projector].items()}
    prefixes = {"model.language_model.": "model.", "model.vision_tower.": TOWER, "model.multi_modal_": "multi_modal_"}
    for table in (prefixes, back):
        prefix = next((one for one in table if name.startswith(one)), "")
        name = table.get(prefix, "") + name.removeprefix(prefix)
    return name


def _require_convertible(config: Mapping[str, Any], path: Path) -> None:
    kind, tower = config.get("model_type"), config.get("mm_vision_tower")
    projector, merging = config.get("mm_projector_type", "linear"), config.get("mm_patch_merge_type", "flat")
    aspect, feature = config.get("image_aspect_ratio"), config.get("mm_vision_select_feature", "patch")
    layer = config.get("mm_vision_select_layer")
    problems = (
        (tower is None, "names no mm_vision_tower; a checkpoint in transformers' own format needs no conversion"),
        (kind not in LANGUAGE, f"model_type is {kind!r}, expected one of {', '.join(LANGUAGE)}"),
        (projector not in PROJECTORS, f"mm_projector_type is {projector!r}, expected one of {', '.join(PROJECTORS)}"),
        (merging != "flat", f"mm_patch_merge_type is {merging!r}, expected 'flat': LLaVA-NeXT is another model"),
        (aspect not in (None, "square", "pad"), f"image_aspect_ratio is {aspect!r}, expected 'pad' or 'square'"),
        (feature not in ("patch", "cls_patch"), f"mm_vision_select_feature is {feature!r}, expected 'patch'"),
        (type(layer) is not int, f"mm_vision_select_layer is {layer!r}, expected a whole number such as -2"),
        (bool(config.get("s2")), "s2 is on: a model that reads an image at several scales is another one"),
    )
    for present, problem in problems:
        if present:
            raise ModelError(f"{path}: {problem}")


def _cached(name: object) -> Path | None:
    """A model of the hub in the local cache; a path in somebody's config is not followed."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name, re.ASCII):
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _weights(folder: Path) -> tuple[Path, ...]:
    if not (found := files.weight_files(folder)):
        raise MissingInput(f"{folder} holds no weights (*.safetensors, pytorch_model*.bin)")
    return found
