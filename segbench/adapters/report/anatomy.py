"""What a model consists of: what its card says, the files of its tensors, its modules, and the prompt as it is read."""

import importlib.metadata
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import segbench
from segbench.adapters import prompt, weights
from segbench.adapters.base import Adapter, Batch
from segbench.adapters.report.findings import Files, Model, Part, Parts
from segbench.attention import decoder_layers
from segbench.errors import ModelError
from segbench.specs import ModelSpec

RUNS = 12  # of image tokens or words, more of which are abbreviated in a prompt


def stated(spec: ModelSpec, device: str, folder: Path | None) -> Model:
    """What the card and the libraries say, before anything is loaded."""
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    return Model(
        name=spec.name,
        adapter=spec.adapter,
        revision=weights.revision(spec) or "unknown",
        license=spec.license or "unknown",
        attention=spec.attention,
        mask_swap=spec.mask_swap,
        implementation=spec.implementation,
        preprocess=spec.preprocess,
        view=spec.view,
        device=device,
        versions=versions | {"segbench": segbench.__version__},
        weights=str(folder) if folder else None,
    )


def loaded(model: Model, adapter: Adapter) -> Model:
    """The same, and what the loaded model says of itself."""
    images: Any = vars(adapter.processor).get("image_processor")
    return replace(
        model,
        model_class=type(adapter.model).__name__,
        parameters=sum(one.numel() for one in adapter.model.parameters()),
        dtype=str(adapter.model.dtype).removeprefix("torch."),
        implementation=adapter.parts.text.config._attn_implementation,
        image_processor=type(images).__name__,
        backend=adapter.spec.backend,
    )


def files(folder: Path) -> Files | None:
    """The files that hold a checkpoint's tensors; None where its index is none."""
    try:
        names = weights.shards(folder)
    except ModelError:  # loading says so too
        return None
    there = ((name, folder / name) for name in names)
    return Files({name: path.stat().st_size if path.is_file() else None for name, path in there}, None)


def parts(adapter: Adapter, batch: Batch) -> Parts:
    """The module table, and the prompt with a prepared image in it."""
    parts, tokenizer = adapter.parts, _tokenizer(adapter)
    paths = {module: path for path, module in adapter.model.named_modules()}

    def part(module: nn.Module) -> Part:
        return Part(paths.get(module, ""), type(module).__name__)

    return Parts(
        text=part(parts.text),
        layers=adapter.depth,
        layer=type(decoder_layers(parts.text)[0]).__name__,
        norm=part(parts.norm),
        projector=part(parts.projector),
        before=tuple(part(module) for module in _before(adapter, batch)),
        image_token=str(tokenizer.convert_ids_to_tokens(parts.image_token_id)),
        image_token_id=parts.image_token_id,
        placeholder=prompt.image(adapter.processor),
        prompt=adapter.embedder.text,
        read_as=_read_as(adapter, batch.inputs["input_ids"][0]),
    )


def _before(adapter: Adapter, batch: Batch) -> list[nn.Module]:
    """The modules of the outer model that run before the LLM, in order."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: ran.append(module))
        for module in adapter.parts.outer.children()
        if module is not adapter.parts.text
    ]
    try:
        adapter.embedder.embed(batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(ran))


def _read_as(adapter: Adapter, ids: Tensor) -> str:
    """A prompt's tokens, runs of image tokens as a number of them."""
    tokenizer, image = _tokenizer(adapter), adapter.parts.image_token_id
    words = []
    for is_image, run in itertools.groupby(ids.tolist(), lambda one: one == image):
        some = list(run)
        word = tokenizer.convert_ids_to_tokens(image)
        words.append(f"{word} x {len(some)}" if is_image else tokenizer.decode(some, skip_special_tokens=False))
    if len(words) > RUNS:
        words = [*words[: RUNS // 2], f"... {len(words) - RUNS} more ...", *words[-RUNS // 2 :]]
    return " ".join(word.strip(" ") for word in words)


def _tokenizer(adapter: Adapter) -> Any:
    return adapter.processor.tokenizer
