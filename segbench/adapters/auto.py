"""Any image-text-to-text model of transformers that turns out to have a grid of image tokens.

Nothing is known of the family: parts are found by watching one picture go through the model, the layout by painting
bands on it, and both are proven by the same self-tests as any other adapter's. What cannot be found is refused.
"""

from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from segbench.adapters import checkpoint, traced
from segbench.adapters.base import Adapter, Declared
from segbench.adapters.checkpoint import Checkpoint
from segbench.adapters.embedder import Embedder, Parts, depth
from segbench.adapters.layout import Framing
from segbench.attention import decoder_layers, require_maskable
from segbench.errors import ModelError
from segbench.specs import ModelSpec

SPLITTING = ("do_image_splitting", "crop_to_patches", "do_pan_and_scan")  # settings that cut a picture into tiles
SAME = 1e-3  # of a vector's length: a projector's output and what enters the LLM
TOKENS = 24  # along a side, where the model leaves it to the picture: as many as LLaVA-1.5 has


def load(spec: ModelSpec, device: str) -> Adapter:
    """The model, once its parts and its layout are found. ModelError, with what was seen, if they are not.

    One fixed square is read: `preprocess: native` is refused, as nothing is known of the processor's arithmetic.
    """
    if spec.preprocess == "native":
        raise ModelError(
            f"{spec.name}: the adapter auto knows no processor's own arithmetic; use `preprocess: squash`, pad or crop"
        )
    found = checkpoint.read(spec, device)
    if "image_registers" in found.config:
        raise ModelError(
            f"{spec.name}: its config has image_registers, which `segbench convert` writes and the adapter llava "
            "reads; use `--model-args adapter=llava`"
        )
    stated = found.processor.image_processor.to_dict()
    tiles = spec.view == "tiles"
    arguments = {} if tiles else {name: False for name in SPLITTING if stated.get(name) is not None}
    framing = Framing.of(spec.preprocess, found.processor.image_processor, side(found))
    embedder = Embedder(found, _parts(found, framing, arguments))
    layout = traced.trace(embedder, framing, arguments, tiles)
    try:
        require_maskable(embedder.parts.text)
        reason = ""
    except ModelError as error:
        reason = str(error)
    return Adapter(embedder, layout, Declared(no_knockout=reason))


def side(found: Checkpoint) -> int:
    """Model pixels of the square that pictures are framed to: the processor's own, where it has one fixed size."""
    stated, config = found.processor.image_processor.to_dict(), found.model.config.to_dict()
    vision = config.get("vision_config") or {}
    fixed = stated.get("crop_size") if stated.get("do_center_crop") else stated.get("size")
    patch, merge = vision.get("patch_size"), vision.get("spatial_merge_size") or config.get("spatial_merge_size") or 1
    if found.spec.resolution:
        return found.spec.resolution
    if fixed and fixed.get("height") and fixed.get("height") == fixed.get("width"):
        return int(fixed["height"])
    if isinstance(vision.get("image_size"), int) and merge == 1:
        return int(vision["image_size"])
    if isinstance(patch, int):
        return TOKENS * patch * merge
    raise ModelError(f"{found.spec.name}: nothing says how many pixels its pictures have; give `resolution: 448` or so")


def _parts(found: Checkpoint, framing: Framing, arguments: dict[str, Any]) -> Parts:
    """The module table, found by what the modules do with one picture of noise."""
    name, model = found.spec.name, found.model
    text = model.get_decoder()
    if not isinstance(text, PreTrainedModel) or "layers" not in dict(text.named_children()):
        raise ModelError(f"{name}: {type(model).__name__} has no text model with a list of layers that auto could read")
    outer: Any = model.base_model
    unfinished = Parts(outer, text, nn.Identity(), nn.Identity(), found.image_token_id)  # until they are found
    assert framing.side is not None
    noise = torch.randint(0, 256, (framing.side, framing.side, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.to(torch.uint8).numpy())
    inputs = Embedder(found, unfinished).inputs(picture, arguments)
    watched = _watched(found, unfinished, inputs)
    call = watched.calls[0] if watched.calls else {}
    if call.get("inputs_embeds") is None:
        raise ModelError(f"{name}: {type(text).__name__} is not called with embeddings that hold the image")
    at = (inputs["input_ids"][0] == found.image_token_id).nonzero()[:, 0].to(found.device)
    projector = watched.projector(call["inputs_embeds"][0, at].float())
    if projector is None:
        raise ModelError(
            f"{name}: no module gives the vectors that stand at the image tokens of {type(outer).__name__}; they are "
            "worked on further after the projector, or enter the LLM some other way (cross attention)"
        )
    norm = watched.norm
    if norm is None:
        raise ModelError(f"{name}: {type(text).__name__} has no final norm that gives its last hidden state")
    return Parts(outer, text, norm, projector, found.image_token_id)


class _Watch:
    """What modules took and gave while one picture went through."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.norm: nn.Module | None = None
        self.gave: list[tuple[str, nn.Module, Tensor, bool]] = []  # name, module, output, whether it took the pixels

    def projector(self, image: Float[Tensor, "n d"]) -> nn.Module | None:
        """The outermost module behind the pixels whose output holds the vectors at most image tokens, up to a scale."""
        found = []
        unit = nn.functional.normalize(image, dim=-1)
        for name, module, output, pixels in self.gave:
            if output.shape[-1] != image.shape[-1]:
                continue
            rows = nn.functional.normalize(output.flatten(0, -2).float(), dim=-1)
            nearest = (unit @ rows.T).max(1).values
            if (nearest > 1 - SAME).float().mean() > 0.5:
                found.append((pixels, name.count("."), name, module))
        behind = [one for one in found if not one[0]] or found
        return min(behind, key=lambda one: one[1:3])[3] if behind else None


def _watched(found: Checkpoint, parts: Parts, inputs: dict[str, Tensor]) -> _Watch:
    """Run one picture through everything before the LLM, and its embeddings through the first block of the LLM."""
    watch = _Watch()
    inside = set(parts.text.modules())
    above = {module for module in parts.outer.modules() if parts.text in set(module.modules())}
    pixels = {tuple(one.shape) for one in inputs.values() if one.is_floating_point()}

    def gave(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point()]
            first = out[0] if isinstance(out, tuple) and out else out
            if isinstance(first, Tensor) and first.ndim >= 2 and first.is_floating_point():
                watch.gave.append((name, module, first, any(tuple(one.shape) in pixels for one in given)))

        return hook

    last: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(gave(name, module), with_kwargs=True)
        for name, module in parts.outer.named_modules()
        if module not in inside and module not in above
    ]
    hooks.append(
        parts.text.register_forward_pre_hook(lambda _, args, kwargs: watch.calls.append(dict(kwargs)), with_kwargs=True)
    )
    blocks = set(decoder_layers(parts.text))
    for module in parts.text.children():
        if module not in blocks:
            hooks.append(module.register_forward_hook(lambda *shown: last.append((shown[0], shown[2]))))
    try:
        with torch.no_grad(), depth(parts.text, 1):
            states = parts.outer(
                **{name: tensor.to(found.device) for name, tensor in inputs.items()}, use_cache=False
            ).last_hidden_state
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{found.spec.name}: {type(parts.outer).__name__} cannot be run on one picture as auto runs it: {error}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    watch.norm = next((m for m, out in last if isinstance(out, Tensor) and torch.equal(out, states)), None)
    return watch
