"""LLaVA-NeXT (1.6): a base view of the whole picture, then its tiles, stitched and without their padding."""

from segbench.adapters import anyres, checkpoint
from segbench.adapters.base import Adapter
from segbench.specs import ModelSpec


def load(spec: ModelSpec, device: str) -> Adapter:
    """The view that the spec names. Errors as `checkpoint.read` and `Anyres.of` raise them."""
    return anyres.adapter(checkpoint.read(spec, device, "llava_next"))
