"""A checkpoint folder as a transformers model and the processor that was saved with it.

Always the stock class that the config names: a subclass silently loses transformers' renaming of tensors, and all
weights with it. Nothing that the folder holds is ever run as code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.image_processing_backends import PilBackend
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import logging as transformers_logging

from segbench.adapters import weights
from segbench.errors import ModelError
from segbench.specs import ModelSpec

KEYS: tuple[str, ...] = ("missing", "unexpected", "of another shape")  # what can be wrong with tensors
PARTS = ("text_config", "vision_config")  # of a config; transformers would make up billions of random parameters
FLAT = ("qwen2_vl", "qwen2_5_vl")  # families whose configs on the hub have the text model's keys at the top


class Unfit(ModelError):
    """Tensors do not fit the config: `keys` are their names, by what is wrong with them."""

    def __init__(self, message: str, keys: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in evaluation mode, and its processor."""

    spec: ModelSpec
    device: torch.device
    model: PreTrainedModel
    processor: ProcessorMixin
    config: Mapping[str, Any]  # as written in the folder

    @property
    def image_token_id(self) -> int:
        """The token that stands for image features; ModelError if the config names none."""
        known = self.model.config.to_dict()
        for name in ("image_token_id", "image_token_index"):
            if isinstance(known.get(name), int):
                return known[name]
        raise ModelError(f"{self.spec.name}: the config of {type(self.model).__name__} names no image token")


def read(spec: ModelSpec, device: str, *families: str) -> Checkpoint:
    """The checkpoint of a spec; `families` are the model types that the adapter reads, all if none is named.

    MissingInput without weights; ModelError for an incomplete checkpoint, another architecture, tensors that are
    missing, unexpected or of another shape, and weights trained with another attention than the spec says.
    """
    folder = weights.folder(spec)
    config = weights.inspect(folder)
    found = config.get("model_type")
    if families and found not in families:
        raise ModelError(
            f"{spec.name}: {folder} holds a {found!r} model, the adapter {spec.adapter} reads "
            f"{' or '.join(map(repr, families))}; name the adapter of that family in the spec, or `adapter: auto`"
        )
    for part in PARTS if families else (name for name in PARTS if name in config):
        if part == "text_config" and found in FLAT and part not in config and config.get("hidden_size"):
            continue
        if not config.get(part) or not isinstance(config[part], dict):
            raise ModelError(f"{spec.name}: the config in {folder} has no {part}, so its {part[:-7]} model is unknown")
    _same_attention(spec, config)
    model = _model(spec, folder)
    processor = _processor(spec, folder, model)
    nn.Module.to(model, device)
    return Checkpoint(spec, torch.device(device), model, processor, config)


def _same_attention(spec: ModelSpec, config: Mapping[str, Any]) -> None:
    """ModelError if the weights say that they were trained with another attention than the spec runs them with."""
    trained = config.get("image_attention", spec.attention)  # a stock checkpoint does not say
    same = trained == spec.attention or (trained, spec.attention) == ("causal", "native")
    if not same and not spec.mask_swap:
        raise ModelError(
            f"{spec.name}: the weights were trained with {trained} image attention, the spec says {spec.attention}; "
            "write what they were trained with, or `mask_swap: true` to run them with the other mask on purpose"
        )


def _model(spec: ModelSpec, folder: Path) -> PreTrainedModel:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype="auto" if spec.dtype == "auto" else getattr(torch, spec.dtype),
            attn_implementation=spec.implementation,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (SafetensorError, StrictDataclassError, ImportError, OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        hint = "; use `implementation: eager`" if spec.implementation in said or "scaled_dot_product" in said else ""
        raise ModelError(f"{spec.name}: {folder} cannot be loaded: {said}{hint}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    model, report = loaded
    other = {str(entry[0]) for entry in report["mismatched_keys"]}
    wrong = dict(zip(KEYS, map(sorted, (report["missing_keys"], report["unexpected_keys"], other)), strict=True))
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in wrong.items() if names)
        raise Unfit(f"{spec.name}: the tensors in {folder} do not fit its config: {told}", wrong)
    return model.eval().requires_grad_(False)


def _processor(spec: ModelSpec, folder: Path, model: PreTrainedModel) -> ProcessorMixin:
    """The processor class that the checkpoint names, or else its family's, made of the checkpoint's parts.

    AutoProcessor would refuse every family that can also see videos where torchvision is absent: the parts that read
    videos or sounds are left out, and the class does not insist on them.
    """
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        settings, _ = ProcessorMixin.get_processor_dict(folder, local_files_only=True)
        cls = _processor_class(spec, folder, model, settings)
        parts: dict[str, Any] = {}
        for name in cls.get_attributes():
            if name == "image_processor":
                parts[name] = _images(spec, AutoImageProcessor.from_pretrained(folder, backend=spec.backend, **local))
            elif name == "tokenizer":
                parts[name] = AutoTokenizer.from_pretrained(folder, **local)
            else:  # for videos or sounds
                parts[name] = None
                unchecked = {"check_argument_for_proper_class": lambda self, name, part: None}
                cls = type(cls.__name__, (cls,), unchecked)
        return cls.from_args_and_dict(list(parts.values()), settings)
    except (OSError, ValueError, ImportError, TypeError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{folder}: the processor cannot be loaded: {said}") from error


def _images(spec: ModelSpec, found: Any) -> Any:
    """The image processor, if it is of the backend asked for: transformers would quietly take the other one."""
    if isinstance(found, PilBackend) != (spec.backend == "pil"):
        what = "it has no PIL backend" if spec.backend == "pil" else "torchvision is not installed, or it has no such"
        other = "torchvision" if spec.backend == "pil" else "pil"
        raise ModelError(
            f"{spec.name}: the image processor would be {type(found).__name__}, not one of the backend "
            f"{spec.backend!r}: {what}; use `backend: {other}`"
        )
    return found


def _processor_class(spec: ModelSpec, folder: Path, model: PreTrainedModel, settings: Mapping[str, Any]) -> Any:
    """A class of transformers; ModelError for one that is none, or that the family does not have."""
    stated = [settings, *(weights.settings(folder, name) for name in ("preprocessor_config", "tokenizer_config"))]
    for name in (one.get("processor_class") for one in stated):
        if isinstance(name, str):
            cls = processor_class_from_name(name)
            if cls is None:
                raise ModelError(
                    f"{spec.name}: {folder} names the processor {name!r}, which transformers does not have"
                )
            return cls
    try:
        return PROCESSOR_MAPPING[type(model.config)]
    except KeyError:
        raise ModelError(f"{spec.name}: transformers has no processor for {model.config.model_type!r} models") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
