"""Qwen2.5-VL and Qwen2-VL: pictures of any size, one token for every 2 x 2 patches, positions on three axes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from segbench.adapters import checkpoint
from segbench.adapters.base import Adapter
from segbench.adapters.checkpoint import Checkpoint
from segbench.adapters.embedder import Embedder, Parts
from segbench.adapters.layout import Framing, Layout, Placement, Size
from segbench.errors import ModelError
from segbench.specs import ModelSpec

TOKENS = 24  # along a side of the square that images are framed to, as many as LLaVA-1.5 has
SAME = {"patch_size": "patch_size", "merge_size": "spatial_merge_size", "temporal_patch_size": "temporal_patch_size"}


def load(spec: ModelSpec, device: str) -> Adapter:
    """The stock model; pictures only. Errors as `checkpoint.read` and `Dynamic.of` raise them.

    ModelError also if the processor does not mark the image's tokens, without which their positions would silently be
    those of text.
    """
    found = checkpoint.read(spec, device, "qwen2_5_vl", "qwen2_vl")
    outer = found.model.model
    text = outer.language_model
    embedder = Embedder(found, Parts(outer, text, text.norm, outer.visual.merger, found.image_token_id))
    layout = Dynamic.of(found)
    blank = layout.framing.picture(Image.new("RGB", (4 * layout.token, 4 * layout.token)))
    if "mm_token_type_ids" not in embedder.inputs(blank, layout.arguments):
        raise ModelError(
            f"{spec.name}: {type(found.processor).__name__} gives no mm_token_type_ids, so image tokens would have the "
            "positions of text; its processor_class should be Qwen2_5_VLProcessor or Qwen2VLProcessor"
        )
    return Adapter(embedder, layout)


@dataclass(frozen=True)
class Dynamic(Layout):
    """A picture is resized to whole tokens, its aspect kept as well as that goes: all of it is seen.

    The vision tower sorts tokens by window and undoes that behind the projector, which therefore consumes them window
    by window, the patches of each in raster order.
    """

    framing: Framing
    arguments: Mapping[str, Any]
    token: int  # pixels of a token's edge
    merge: int  # patches along a token's edge
    window: int  # tokens along a window's edge, 0 where there are no windows
    pixels: tuple[int, int]  # that a resized picture has at least and at most

    @classmethod
    def of(cls, found: Checkpoint) -> "Dynamic":
        """ModelError for a processor that cuts other patches than the model takes, or a `resolution` with parts of
        tokens."""
        spec, processor = found.spec, found.processor.image_processor
        vision, stated = found.model.config.to_dict()["vision_config"], processor.to_dict()
        for key, name in SAME.items():
            if stated[key] != vision[name]:
                raise ModelError(
                    f"{spec.name}: {key} is {stated[key]} in preprocessor_config.json, but {name} is {vision[name]} in "
                    "config.json; make them the same"
                )
        if not stated.get("do_resize"):
            raise ModelError(
                f"{spec.name}: {type(processor).__name__} does not resize, and pictures have no whole number of "
                "tokens; set do_resize to true in preprocessor_config.json"
            )
        token = vision["patch_size"] * vision["spatial_merge_size"]
        side = spec.resolution or TOKENS * token
        if side % token:
            near = max(1, round(side / token)) * token
            raise ModelError(
                f"{spec.name}: resolution is {side}, expected a multiple of {token} pixels, such as {near}: a token "
                f"has {vision['spatial_merge_size']} patches of {vision['patch_size']} pixels along its edge"
            )
        limits = (stated["size"]["shortest_edge"], stated["size"]["longest_edge"])  # pixels in all, whatever the name
        arguments: dict[str, Any] = {}
        if spec.preprocess != "native":
            limits = (side**2, side**2)
            arguments = {"size": dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))}
        window = vision.get("window_size", 0) // token
        framing = Framing.of(spec.preprocess, processor, side)
        return cls(framing, arguments, token, vision["spatial_merge_size"], window, limits)

    @property
    def patch_pixels(self) -> float:
        return float(self.token)

    def place(self, picture: Size) -> Placement:
        height, width = picture
        try:
            resized = smart_resize(
                height, width, factor=self.token, min_pixels=self.pixels[0], max_pixels=self.pixels[1]
            )
        except ValueError as error:
            raise ModelError(
                f"a picture of {height} x {width} pixels: {error}; use `preprocess: squash`, pad or crop"
            ) from error
        h, w = resized[0] // self.token, resized[1] // self.token
        count = h * w
        return Placement((h, w), (h / height, w / width), (0.0, 0.0), count, np.arange(count), (self._consumed(h, w),))

    def _consumed(self, h: int, w: int) -> Int[np.ndarray, "t m"]:
        """Rows of the patches of every token, tokens in raster order."""
        row, column = np.indices((h, w)).reshape(2, -1)
        window = self.window or max(h, w)
        order = np.lexsort((column, row, column // window, row // window))  # by the last key first
        patches = self.merge**2
        return np.argsort(order)[:, None] * patches + np.arange(patches)
