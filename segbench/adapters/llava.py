"""LLaVA-1.5: a vision tower (CLIP, SigLIP, DINOv2), an MLP projector and an LLM, one grid of image tokens per image."""

from segbench.adapters import checkpoint
from segbench.adapters.base import Adapter, Declared
from segbench.adapters.canvas import Canvas
from segbench.adapters.embedder import Embedder, Parts
from segbench.specs import ModelSpec


def load(spec: ModelSpec, device: str) -> Adapter:
    """The stock model and the processor that its checkpoint states. Errors as `checkpoint.read` raises them."""
    found = checkpoint.read(spec, device, "llava")
    outer = found.model.model
    text = outer.language_model
    parts = Parts(outer, text, text.norm, outer.multi_modal_projector, found.image_token_id)
    vision = found.model.config.to_dict()["vision_config"]
    # transformers cuts CLS only: DINOv2's registers stay in front of the patches, as image tokens without a place.
    registers = vision.get("num_register_tokens", 0)
    if found.config.get("image_registers") == "dropped":  # as the code that trained the model did (segbench convert)
        parts.projector.register_forward_pre_hook(lambda _, args, cut=registers: (args[0][:, cut:],))
        registers = 0
    canvas = Canvas.of(found.processor.image_processor, spec.preprocess, vision["patch_size"], registers)
    return Adapter(Embedder(found, parts), canvas, Declared(registers=registers))
