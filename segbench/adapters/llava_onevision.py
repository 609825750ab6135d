"""LLaVA-OneVision: a base view and tiles, as LLaVA-NeXT; a grid of more than 9 tiles' worth of patches is shrunk."""

import re

from segbench.adapters import anyres, checkpoint
from segbench.adapters.base import Adapter
from segbench.errors import ModelError
from segbench.specs import ModelSpec


def load(spec: ModelSpec, device: str) -> Adapter:
    """The view that the spec names. Errors as `checkpoint.read` and `Anyres.of` raise them.

    ModelError also for a limit of tiles that is none, or that the processor counts tokens by another one of.
    """
    found = checkpoint.read(spec, device, "llava_onevision")
    stated = found.model.config.vision_aspect_ratio
    limit = re.fullmatch(r"anyres_max_([1-9]\d*)", str(stated), re.ASCII)
    if not limit:
        raise ModelError(f"{spec.name}: vision_aspect_ratio is {stated!r}, expected anyres_max_9 or another number")
    counted = vars(found.processor).get("vision_aspect_ratio")
    if counted != stated:
        raise ModelError(
            f"{spec.name}: vision_aspect_ratio is {counted!r} in processor_config.json and {stated!r} in config.json; "
            "make them the same"
        )
    return anyres.adapter(found, int(limit[1]))
