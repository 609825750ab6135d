"""LLaVA-1.5: a vision tower (CLIP, SigLIP, DINOv2), an MLP projector and an LLM, one grid of image tokens per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging as transformers_logging

from segbench.adapters import _selftest, weights
from segbench.adapters.base import ADAPTER, ENCODER, Adapter, Batch, Parts
from segbench.adapters.canvas import Canvas
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Sample, Site

PLACEHOLDER = "<image>"  # in a spec's prompt, whatever the tokenizer calls it


def load(spec: ModelSpec, device: str) -> "Llava":
    """The model of a spec in evaluation mode, self-tests passed.

    MissingInput without weights; ModelError for an incomplete checkpoint, another architecture, tensors that are
    missing, unexpected or of another shape, weights trained with another attention than the spec says, a failed
    self-test.
    """
    folder = weights.folder(spec)
    config = weights.inspect(folder)
    if config.get("model_type") != "llava":
        raise ModelError(
            f"{spec.name}: {folder} holds a {config.get('model_type')!r} model, the adapter llava reads 'llava'; "
            "name the adapter of that family in the spec"
        )
    for part in ("text_config", "vision_config"):  # transformers would make up 7 billion random parameters
        if not config.get(part) or not isinstance(config[part], dict):
            raise ModelError(f"{spec.name}: the config in {folder} has no {part}, so its {part[:-7]} model is unknown")
    _same_attention(spec, config)
    model = _model(spec, folder)
    nn.Module.to(model, device)
    adapter = Llava(spec, torch.device(device), model, _processor(folder))
    adapter.selftests = _selftest.run(adapter)
    return adapter


class Llava(Adapter):
    """Stock `LlavaForConditionalGeneration` and the processor that its checkpoint states."""

    def __init__(
        self, spec: ModelSpec, device: torch.device, model: LlavaForConditionalGeneration, processor: LlavaProcessor
    ) -> None:
        outer, number = model.model, model.config.image_token_id
        text = outer.language_model
        super().__init__(spec, device, Parts(outer, text, text.norm, outer.multi_modal_projector, number))
        self.model, self.processor = model, processor
        vision = model.config.to_dict()["vision_config"]
        self._vision_width, self._patch = vision["hidden_size"], vision["patch_size"]
        # transformers cuts CLS only: DINOv2's registers stay in front of the patches, as image tokens without a place.
        self._registers = vision.get("num_register_tokens", 0)
        self.canvas = Canvas.of(processor.image_processor, spec.preprocess, self._patch)
        self._sequence: tuple[Tensor, Tensor] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        return self.canvas.grid

    @property
    def widths(self) -> Mapping[Site, int]:
        layers = self.model.config.vision_feature_layer
        sources = 1 if isinstance(layers, int) else len(layers)
        text = self.parts.text.config.hidden_size
        return {site: sources * self._vision_width if site == ENCODER else text for site in (*self.sites(), ADAPTER)}

    def prepare(self, samples: Sequence[Sample]) -> Batch:
        images = [sample.image.convert("RGB") for sample in samples]
        pixels = self.canvas.pixels(images)
        ids, image_at = self._prompt(images[0])
        rows = len(samples)
        inputs = {
            "input_ids": ids.expand(rows, -1),
            "attention_mask": torch.ones(rows, ids.shape[1], dtype=torch.long),
            "pixel_values": pixels.to(self.model.dtype),
        }
        grids = tuple(self.canvas.grid_map((image.height, image.width)) for image in images)
        return Batch(inputs, image_at.expand(rows, -1), grids, tuple(sample.mask for sample in samples))

    def patches(self, consumed: tuple[Tensor, ...]) -> Float[Tensor, "b t d"]:
        return consumed[0][:, self._registers :]

    def _prompt(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Token ids [1 s] up to the last image token, which nothing after it can change, and patch positions [1 t].

        The processor itself expands the placeholder, once: all images have the same size when the model sees them.
        """
        if self._sequence is None:
            ids = self._tokenize(image)
            at = (ids[0] == self.parts.image_token_id).nonzero()[:, 0]
            h, w = self.grid
            if len(at) != self._registers + h * w:
                raise ModelError(
                    f"{self.spec.name}: the processor makes {len(at)} image tokens, expected {self._registers} "
                    f"registers + {h} x {w} patches; check its patch_size, num_additional_image_tokens and "
                    "vision_feature_select_strategy"
                )
            self._sequence = ids[:, : int(at[-1]) + 1], at[None, self._registers :]
        return self._sequence

    def _tokenize(self, image: Image.Image) -> Tensor:
        prompt = self.spec.prompt
        if prompt.count(PLACEHOLDER) != 1:
            raise ModelError(f"{self.spec.name}: the prompt {prompt!r} must hold {PLACEHOLDER} exactly once")
        text = prompt.replace(PLACEHOLDER, self.processor.image_token)
        resizing = dict(self.canvas.arguments)
        ids = self.processor(text=[text], images=[image], return_tensors="pt", images_kwargs=resizing)["input_ids"]  # type: ignore[call-arg]
        if not bool((ids == self.parts.image_token_id).any()):
            number = self.parts.image_token_id
            raise ModelError(f"{self.spec.name}: no token of the prompt has the model's image_token_id {number}")
        return ids


def _same_attention(spec: ModelSpec, config: Mapping[str, Any]) -> None:
    """ModelError if the weights say that they were trained with another attention than the spec runs them with."""
    trained = config.get("image_attention", spec.attention)  # a stock checkpoint does not say
    if trained != spec.attention and not spec.mask_swap:
        raise ModelError(
            f"{spec.name}: the weights were trained with {trained} image attention, the spec says {spec.attention}; "
            "write what they were trained with, or `mask_swap: true` to run them with the other mask on purpose"
        )


def _model(spec: ModelSpec, folder: Path) -> LlavaForConditionalGeneration:
    # Always the stock class: a subclass silently loses transformers' renaming of tensors, and all weights with it.
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.implementation,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (SafetensorError, StrictDataclassError, ImportError, OSError, ValueError) as error:
        raise ModelError(f"{spec.name}: {folder} cannot be loaded: {error}") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    model, report = loaded
    wrong = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in wrong.items() if names)
        raise ModelError(f"{spec.name}: the tensors in {folder} do not fit its config: {told}")
    return model.eval().requires_grad_(False)


def _processor(folder: Path) -> LlavaProcessor:
    """The checkpoint's processor with the PIL image backend, which is the same on every machine."""
    try:
        processor = LlavaProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        processor.image_processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: the processor cannot be loaded: {error}") from error
    return processor


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
