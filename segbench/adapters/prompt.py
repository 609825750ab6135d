"""The text around an image, as the family of a checkpoint writes it."""

from typing import Any

from transformers import ProcessorMixin

from segbench.errors import ModelError
from segbench.specs import ModelSpec

PLACEHOLDER = "<image>"  # in a spec's prompt, whatever the family itself writes for an image
_BEFORE, _BEHIND = "<before>", "<behind>"


def text(spec: ModelSpec, processor: ProcessorMixin) -> str:
    """The spec's prompt with the family's own words for an image; without one, the checkpoint's chat template.

    ModelError for a prompt that does not hold the placeholder once.
    """
    if spec.prompt is None:
        return _chat(processor, [{"type": "image"}]) if processor.chat_template else image(processor)
    if spec.prompt.count(PLACEHOLDER) != 1:
        raise ModelError(f"{spec.name}: the prompt {spec.prompt!r} must hold {PLACEHOLDER} exactly once")
    return spec.prompt.replace(PLACEHOLDER, image(processor))


def image(processor: ProcessorMixin) -> str:
    """What the family writes where an image stands: its image token and whatever belongs around it.

    Read off the chat template, between two words; templates that move images to the front show nothing there, and say
    with that that the token stands alone.
    """
    if processor.chat_template:
        words = [{"type": "text", "text": _BEFORE}, {"type": "image"}, {"type": "text", "text": _BEHIND}]
        between = _chat(processor, words).partition(_BEFORE)[2].partition(_BEHIND)[0]
        if between.strip():
            return between
    token: Any = vars(processor).get("image_token")
    return token if isinstance(token, str) else PLACEHOLDER


def _chat(processor: ProcessorMixin, content: list[dict[str, str]]) -> str:
    """One user turn, as the template writes it. Asked for it, some processors would want their video side."""
    turns: Any = [{"role": "user", "content": content}]
    tokenizer: Any = processor.tokenizer
    return tokenizer.apply_chat_template(turns, chat_template=processor.chat_template, tokenize=False)
