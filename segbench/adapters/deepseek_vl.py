"""DeepSeek-VL: a picture in the middle of a square, seen by SigLIP (1.3B), or by SigLIP and SAM side by side (7B)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segbench.adapters import checkpoint
from segbench.adapters.base import Adapter
from segbench.adapters.checkpoint import Checkpoint
from segbench.adapters.embedder import Embedder, Parts
from segbench.adapters.layout import Framing, Layout, Placement, Size, rows
from segbench.errors import ModelError
from segbench.specs import ModelSpec

HYBRID = "deepseek_vl_hybrid"


def load(spec: ModelSpec, device: str) -> Adapter:
    """The stock model, hybrid or not. Errors as `checkpoint.read` and `Padded.of` raise them."""
    found = checkpoint.read(spec, device, "deepseek_vl", HYBRID)
    outer = found.model.model
    text = outer.language_model
    parts = Parts(outer, text, text.norm, outer.aligner, found.image_token_id)
    return Adapter(Embedder(found, parts), Padded.of(found))


@dataclass(frozen=True)
class Padded(Layout):
    """The processor's own arithmetic: the longest side is resized to `side`, the rest of the square is padding.

    The hybrid's square is the one for SAM; SigLIP sees the same square made smaller, so one map holds for both. What
    the hybrid's projector consumes of a patch is SigLIP's state and, beside it, SAM's features, which two convolutions
    with a stride of 2 bring to SigLIP's grid: they look at the patch from 3/8 of it further up and to the left.
    """

    framing: Framing
    side: int  # pixels of the square: of SAM's, if there is one
    least: int  # pixels that the short side has at least
    patch: float  # pixels of the square per patch edge
    edge: int  # patches along the square
    tensors: int  # that the projector consumes, one row of each per patch
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Checkpoint) -> "Padded":
        """ModelError where the processor makes other squares than the vision towers take, or none."""
        spec, processor = found.spec, found.processor.image_processor
        config, stated = found.model.config.to_dict(), processor.to_dict()
        towers = {"size": config["vision_config"]}
        if config["model_type"] == HYBRID:
            towers["high_res_size"] = config["high_res_vision_config"]
        side = 0
        for key, tower in towers.items():
            side = tower["image_size"]
            edges = {value for value in dict(stated.get(key) or {}).values() if value}
            if edges != {side}:
                raise ModelError(
                    f"{spec.name}: {type(processor).__name__} makes pictures of {sorted(edges) or 'no'} pixels, the "
                    f"model takes {side}; correct {key} in preprocessor_config.json"
                )
        if not (stated.get("do_resize") and stated.get("do_pad")):
            raise ModelError(
                f"{spec.name}: {type(processor).__name__} makes no squares; set do_resize and do_pad to true in "
                "preprocessor_config.json"
            )
        if spec.resolution not in (None, side):
            raise ModelError(
                f"{spec.name}: resolution is {spec.resolution}, but the model sees squares of {side} pixels only; "
                "leave `resolution` out"
            )
        low = config["vision_config"]
        patch, edge = low["patch_size"] * side / low["image_size"], low["image_size"] // low["patch_size"]
        red, green, blue = stated["background_color" if len(towers) == 1 else "high_res_background_color"]
        framing = Framing(spec.preprocess, (red, green, blue), side)
        return cls(framing, side, int(stated["min_size"]), patch, edge, len(towers))

    @property
    def patch_pixels(self) -> float:
        return float(self.patch)

    def place(self, picture: Size) -> Placement:
        ratio = self.side / max(picture)
        scale, shift = [], []
        for length in picture:
            resized = max(round(length * ratio), self.least)  # halves to the even number, as the processor does
            scale.append(resized / length / self.patch)
            shift.append((self.side - resized) // 2 / self.patch)
        grid, count = (self.edge, self.edge), self.edge**2
        consumed = (rows(count),) * self.tensors
        return Placement(grid, (scale[0], scale[1]), (shift[0], shift[1]), count, np.arange(count), consumed)
