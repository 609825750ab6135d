"""`segbench model check`: everything that decides whether numbers of a model mean anything, before there are any."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segbench.cli.options import (
    RUNS,
    Device,
    Figures,
    Include,
    Json,
    ModelArgs,
    Preprocess,
    Weights,
    library,
    overridden,
)
from segbench.cli.say import FAILED, OK, as_columns, as_json, say, shown
from segbench.errors import SpecError
from segbench.files import said_bytes

if TYPE_CHECKING:
    from segbench.adapters.report import Check, Files, Model, Part, Parts, Report, Row, Tokens
    from segbench.library import Library
    from segbench.types import Sample

NAMED = 5  # tensors

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a model card, hf:ORG/NAME, or a checkpoint's folder")],
    weights: Weights = None,
    preprocess: Preprocess = None,
    model_args: ModelArgs = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="PNG or JPEG to look at, in place of a drawn one")
    ] = None,
    output: Annotated[Path | None, typer.Option(file_okay=False, help="folder of the picture")] = None,
    device: Device = "auto",
    include: Include = None,
    figures: Figures = True,
    json: Json = False,
) -> None:
    """Tell what a model consists of, where its patches are, and which self-tests it passes. Exits 1 if one fails."""
    from segbench.store import folder_name

    specs = library(include)
    chosen = specs.models(name, overridden(model_args, weights, preprocess) or None)
    if len(chosen) != 1:
        raise SpecError(f"{name!r} names {len(chosen)} models; one is checked at a time")
    sample = _sample(image) if image else None
    from segbench import planning
    from segbench.adapters import report

    found = report.examine(chosen[0], planning.device(device), sample, say)
    found = replace(found, model=replace(found.model, card=_card(specs, found.model.name)))
    print(as_json(found.data()) if json else _text(found))
    if figures and found.views:
        _draw(found, output or RUNS / "check" / folder_name(chosen[0].name))
    if found.failed:
        say(f"{len(found.failed)} of {len(found.checks)} checks failed: {', '.join(found.failed)}")
    raise typer.Exit(FAILED if found.failed else OK)


def _sample(path: Path) -> "Sample":
    """The user's picture, of which nothing is known but what it looks like."""
    import numpy as np

    from segbench.images import read_image
    from segbench.types import IGNORE, Sample

    image = read_image(path)
    return Sample(str(path), image, np.full((image.height, image.width), IGNORE, np.uint8))


def _card(specs: "Library", name: str) -> str | None:
    """The file of a model, which is named after it and whatever replaces fields of it; None for one without."""
    named = {entry.name: str(entry.path) for entry in specs.entries() if entry.type == "model"}
    return named.get(name) or named.get(name.partition("~")[0])


def _draw(found: "Report", folder: Path) -> None:
    """The picture of the token grid; nothing where matplotlib is not installed."""
    from segbench.plots import tokens

    try:
        for path in tokens.write(found.views, found.model.name, folder):
            if path.suffix == ".png":
                say(f"picture:  {path}")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        say("no picture: matplotlib is not installed; pip install 'segbench[plots]'")


def _text(found: "Report") -> str:
    """The report for a reader, section by section."""
    sections = [_section("model", _model(found.model))]
    if found.checkpoint:
        sections.append(_section("checkpoint", _files(found.checkpoint)))
    if found.parts:
        sections.append(_section("parts", _parts(found.parts)))
    if found.sites:
        sections.append(_table("sites", (_site(row) for row in found.sites)))
    if found.tokens:
        sections.append(_section("tokens", _tokens(found.tokens)))
    sections.append(_checks(found.checks))
    if found.memory:
        sizes = found.memory.batches.items()
        batches = {f"a batch of {images}": f"{said_bytes(size)} and more" for images, size in sizes}
        held = {f"{found.memory.held_images:,} images held": f"{said_bytes(found.memory.held)} for all residual sites"}
        sections.append(_section("memory", {"weights": said_bytes(found.memory.weights)} | batches | held))
    return "\n\n".join(sections)


def _model(model: "Model") -> dict[str, str]:
    swapped = ", not what the weights were trained with" if model.mask_swap else ""
    rows = {
        "name": model.name,
        "card": model.card or "none",
        "adapter": model.adapter,
        "class": model.model_class,
        "weights": model.weights,
        "revision": model.revision,
        "licence": model.license,
        "parameters": f"{model.parameters:,}" if model.parameters is not None else None,
        "dtype": model.dtype,
        "attention": f"{model.attention}{swapped} ({model.implementation})",
        "images": f"{model.image_processor} ({model.backend})" if model.image_processor else None,
        "device": model.device,
        "versions": ", ".join(f"{name} {version}" for name, version in model.versions.items()),
    }
    return {key: value for key, value in rows.items() if value is not None}


def _files(files: "Files") -> dict[str, str]:
    there = {name: size for name, size in files.shards.items() if size is not None}
    absent = [name for name in files.shards if name not in there]
    rows = {"shards": f"{len(there)} of {len(files.shards)}, {said_bytes(sum(there.values()))}"}
    if absent:
        rows["not there"] = _some(absent)
    for what, names in (files.keys or {}).items():
        rows[what] = f"{len(names)} tensors ({_some(names)})" if names else "no tensor"
    return rows


def _parts(parts: "Parts") -> dict[str, str]:
    return {
        "text model": _part(parts.text),
        "layers": f"{parts.layers} {parts.layer}",
        "final norm": _part(parts.norm),
        "projector": _part(parts.projector),
        "before the LLM": ", ".join(_part(one) for one in parts.before),
        "image token": f"{parts.image_token} ({parts.image_token_id})",
        "placeholder": parts.placeholder,
        "prompt": parts.prompt,
        "read as": f"{parts.read_as} (cut behind the image, which nothing later can change)",
    }


def _part(part: "Part") -> str:
    return f"{part.path} ({part.kind})"


def _site(row: "Row") -> dict[str, str]:
    name = row.first if row.count == 1 else f"{row.first} ... {row.last}"
    name = "adapter, llm.0" if name == "adapter" else name
    return {"site": name, "sites": str(row.count), "width": str(row.width), "per image and site": said_bytes(row.bytes)}


def _tokens(tokens: "Tokens") -> dict[str, str]:
    kinds = f" ({tokens.kinds})" if tokens.kinds else ""
    edges = ", ".join(f"{count} at the {edge}" for edge, count in tokens.edges.items())
    return {
        "image": f"{tokens.image}, {_size(tokens.size)}",
        "picture": f"{_size(tokens.picture)}, preprocess: {tokens.preprocess}",
        "grid": f"{tokens.grid[0]} x {tokens.grid[1]} patches (h x w)",
        "image tokens": f"{tokens.tokens}, {tokens.placeless} of them without a place{kinds}",
        "without a pixel": f"{tokens.empty} patches",
        "unseen": f"{100 * tokens.unseen:.2f} % of the pixels" + (f" ({edges})" if edges else ""),
        "sequence": f"{tokens.sequence} tokens",
    }


def _checks(checks: "Sequence[Check]") -> str:
    """A table, and below it what is to be said of those that did not pass."""
    verdicts = {True: "pass", False: "FAIL", None: "not tested"}
    rows = [
        {
            "check": one.name,
            "": one.about,
            "found": "" if one.value is None else f"{one.value:.3g}",
            "expected": one.limit or "",
            "verdict": verdicts[one.passed],
        }
        for one in checks
    ]
    said: dict[str, list[str]] = {}
    for one in checks:
        if one.note:
            said.setdefault(f"{verdicts[one.passed]}: {one.note}", []).append(one.name)
    return "\n".join(
        [_table("checks", rows), *(f"  {', '.join(names)}: {shown(told)}" for told, names in said.items())]
    )


def _section(title: str, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {key:{width}}  {shown(value)}" for key, value in rows.items())])


def _table(title: str, rows: Iterable[Mapping[str, str]]) -> str:
    told = ({key: shown(value) for key, value in row.items()} for row in rows)
    return f"{title}\n{textwrap.indent(as_columns(told), '  ')}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels (H x W)"
