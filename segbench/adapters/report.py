"""What can be found out about one model before anything is measured with it: all of it as data, nothing is printed.

Loading stops at the first self-test that fails; here every one is run and reported, and so is all else that decides
whether a number means anything: the files, the parts, the prompt, the sites, the token grid and the memory needed.
"""

import importlib.metadata
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

import segbench
from segbench import registry
from segbench.adapters import _generation, _selftest, prompt, weights
from segbench.adapters.base import FINAL, Adapter, Batch
from segbench.adapters.checkpoint import KEYS, Unfit
from segbench.adapters.layout import Framing
from segbench.attention import decoder_layers
from segbench.data import scenes
from segbench.errors import MissingInput, ModelError, SegbenchError, SpecError
from segbench.geometry import patch_index
from segbench.specs import ModelSpec
from segbench.types import GridMap, Sample, Site

SCENE = (240, 360)  # H x W pixels of the example: no square, so that squash, pad and crop differ
BATCHES = (1, 8)  # images
HELD = 1000  # images
RUNS = 12  # of image tokens or words, more of which are abbreviated in a prompt

ABOUT = {  # every check, in order
    "load": "every file, tensor and part is there",
    "layout": "patches that an image token is away from its place",
    "encoder": "the same of the rows that the projector consumes",
    "plain": "the model's own forward pass against ours",
    "alone": "an image alone against itself in a batch of two",
    "first_token": "what the first image token hears of the last one",
    "behind": "what image tokens hear of words behind them",
    "leak": "what other image tokens hear of knocked-out ones",
    "effect": "what a knockout changes in other image tokens",
    "nothing": "what a knockout of no token changes",
    "example": "image tokens of the example image",
    "sites": "sites that can be read",
    "generate": f"{_generation.TOKENS} tokens with a cache against none",
    "generate_knockout": "a knockout held by generate() against ours",
}
LAYOUT, ATTENTION = ("layout", "encoder"), ("plain", "alone", "first_token", "behind")
KNOCKOUT, GENERATION = ("leak", "effect", "nothing"), ("generate", "generate_knockout")


@dataclass(frozen=True)
class Check:
    """One thing that has to hold: what was measured, what was expected, and whether that is so."""

    name: str
    about: str
    passed: bool | None  # None: it cannot be tested here, `note` says why
    value: float | None = None
    limit: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Model:
    """What the card and the libraries say; without the last group, where the model could not be loaded."""

    name: str
    adapter: str
    revision: str
    license: str
    attention: str
    mask_swap: bool
    implementation: str
    preprocess: str
    view: str
    device: str
    versions: Mapping[str, str]
    weights: str | None = None  # folder
    card: str | None = None  # file, for those who know

    model_class: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    image_processor: str | None = None
    backend: str | None = None  # of the image processor


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint's tensors, and the names of those that do not fit, by what is wrong with them."""

    shards: Mapping[str, int | None]  # bytes; None for a file that is not there
    keys: Mapping[str, Sequence[str]] | None  # None where it did not come to that


@dataclass(frozen=True)
class Part:
    """A module, by its attributes from the model on."""

    path: str
    kind: str


@dataclass(frozen=True)
class Parts:
    """The module table and the prompt."""

    text: Part
    layers: int
    layer: str  # class
    norm: Part
    projector: Part
    before: tuple[Part, ...]  # modules of the outer model that run before the LLM, in order
    image_token: str
    image_token_id: int
    placeholder: str  # what the family writes for an image
    prompt: str
    read_as: str  # the prompt as the LLM reads it, cut behind the last image token


@dataclass(frozen=True)
class Row:
    """Sites that are alike."""

    first: str
    last: str
    count: int
    width: int
    bytes: int  # of one site, per image


@dataclass(frozen=True)
class Tokens:
    """Where the patches of the example image are."""

    image: str
    size: tuple[int, int]  # (H, W) pixels
    picture: tuple[int, int]  # (H, W) pixels, as the processor is given it
    preprocess: str
    grid: tuple[int, int]
    tokens: int  # image tokens in all
    placeless: int  # of them, that are no patch of the grid
    kinds: str  # what these are, as far as the family says
    empty: int  # patches that hold the centre of no pixel
    unseen: float  # fraction of the pixels that no patch sees
    edges: Mapping[str, int]  # pixels that are unseen along an edge
    sequence: int  # tokens up to the last image token


@dataclass(frozen=True)
class Memory:
    """Bytes, computed from shapes; what a module needs while it runs comes on top. Logits are never computed."""

    weights: int
    batches: Mapping[str, int]  # by images: features of all residual sites, and what enters and leaves a block
    held: int  # features of all residual sites of a thousand images
    held_images: int


@dataclass(frozen=True)
class View:
    """A picture, and where the patches are on it."""

    title: str
    image: Image.Image
    grid_map: GridMap


@dataclass(frozen=True)
class Report:
    """All that was found out; what is missing could not be, and a check says why."""

    model: Model
    checks: tuple[Check, ...]
    checkpoint: Files | None = None
    parts: Parts | None = None
    sites: tuple[Row, ...] = ()
    tokens: Tokens | None = None
    memory: Memory | None = None
    views: tuple[View, ...] = ()  # the example image, and the picture that the processor is given

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.checks if one.passed is False)

    def data(self) -> dict[str, Any]:
        """As JSON; what is not known is left out."""
        return _known(asdict(replace(self, views=()))) | {"passed": not self.failed}


def examine(spec: ModelSpec, device: str, image: Sample | None, tell: Callable[[str], object]) -> Report:
    """Load a model, run every self-test and look at an image (None: a drawn one); `tell` hears what is being done.

    MissingInput where the weights are not there, SpecError for an adapter that cannot be imported; whatever else is
    wrong is a check that failed.
    """
    folder = weights.folder(spec) if spec.weights or spec.hub else None
    report = Report(_model(spec, device, folder), (), _files(folder) if folder else None)
    tell(f"{spec.name}: loading {folder or spec.adapter}")
    adapter, problem = _tried(lambda: registry.module("adapters", spec.adapter).load(spec, device))
    if adapter is None:
        keys = problem.keys if isinstance(problem, Unfit) else None
        return replace(_with_keys(report, keys), checks=(_failed("load", problem),))
    report = _with_keys(replace(report, model=_loaded(report.model, adapter)), dict.fromkeys(KEYS, ()))
    tell(f"{spec.name}: looking where patches are and what attention does")
    checks = [Check("load", ABOUT["load"], True)]
    checks += _collected(adapter, LAYOUT, lambda: iter(_selftest.distances(adapter).items()))
    tests = ATTENTION if adapter.declared.no_knockout else ATTENTION + KNOCKOUT
    checks += _collected(adapter, tests, lambda: _selftest.differences(adapter))
    checks += _not_tested([name for name in KNOCKOUT if name not in tests], adapter.declared.no_knockout)
    return _with_example(replace(report, checks=tuple(checks)), adapter, image or _scene(), tell)


def _with_keys(report: Report, keys: Mapping[str, Sequence[str]] | None) -> Report:
    return replace(report, checkpoint=replace(report.checkpoint, keys=keys)) if report.checkpoint else report


def _with_example(report: Report, adapter: Adapter, sample: Sample, tell: Callable[[str], object]) -> Report:
    """The report, and what an image shows: parts, the token grid, sites, memory, and generation."""
    looked, problem = _tried(lambda: _looked(adapter, sample))
    if looked is None:
        rest = _not_tested(("sites", *GENERATION), "there is no image to try it with")
        return replace(report, checks=(*report.checks, _failed("example", problem), *rest))
    batch, parts, tokens, views = looked
    checks = [*report.checks, Check("example", ABOUT["example"], True, float(tokens.tokens), "as the layout says")]
    widths, problem = _tried(lambda: _selftest.widths(adapter))
    if widths is None:
        checks.append(_failed("sites", problem))
    else:
        report = replace(report, sites=_rows(adapter, batch, widths), memory=_memory(adapter, batch, widths))
        checks.append(Check("sites", ABOUT["sites"], True, float(len(widths)), "all"))
    if adapter.model.can_generate():
        tell(f"{adapter.spec.name}: generating")
        names = GENERATION[:1] if adapter.declared.no_knockout else GENERATION
        checks += _collected(adapter, names, lambda: _generation.differences(adapter, sample.image))
        checks += _not_tested(GENERATION[len(names) :], adapter.declared.no_knockout)
    else:
        checks += _not_tested(GENERATION, f"{type(adapter.model).__name__} has no generate()")
    return replace(report, checks=tuple(checks), parts=parts, tokens=tokens, views=views)


def _looked(adapter: Adapter, sample: Sample) -> tuple[Batch, Parts, Tokens, tuple[View, ...]]:
    batch = adapter.prepare([sample])
    size = (sample.image.height, sample.image.width)
    return batch, _parts(adapter, batch), _tokens(adapter, batch, sample.name, size), _views(adapter, sample)


def _scene() -> Sample:
    scene = scenes.draw(1, scenes.HELD_OUT, SCENE)
    return Sample("a drawn scene", Image.fromarray(scene.image), scene.mask)


def _tried(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call gives, or the error it raised; missing weights and mistakes in a spec are raised on."""
    try:
        return call(), None
    except (MissingInput, SpecError):
        raise
    except Exception as error:  # the boundary: a checkpoint can make its model raise anything, and that is a finding
        return None, error


def _collected(
    adapter: Adapter, names: Sequence[str], measure: Callable[[], Iterator[tuple[str, float]]]
) -> Iterator[Check]:
    """The checks with these names, in order; those that an error cut off failed with it."""
    found: dict[str, Check] = {}

    def collect() -> None:
        for name, value in measure():
            found[name] = _judged(adapter, name, value)

    _, problem = _tried(collect)
    for name in names:
        if name in found:
            yield found[name]
        elif problem is None:
            yield from _not_tested([name], "it does not apply to this model")
        else:
            yield _failed(name, problem)


def _judged(adapter: Adapter, name: str, value: float) -> Check:
    if name in GENERATION:
        limit = _selftest.TOLERANCE[str(adapter.model.dtype).removeprefix("torch.")]
        wrong = "" if value <= limit else f"they differ by {value:.1e} of the rms: answers come from other states"
        one = _selftest.Verdict(name, value, f"<= {limit:g} of the rms", wrong)
    else:
        one = _selftest.verdict(name, value, adapter)
    number = value if math.isfinite(value) else None
    return Check(name, ABOUT.get(name, name), not one.wrong, number, one.limit, one.wrong or None)


def _failed(name: str, problem: Exception | None) -> Check:
    told = "nothing was measured" if problem is None else str(problem)
    if problem is not None and not isinstance(problem, SegbenchError):
        told = f"{type(problem).__name__}: {problem}"
    return Check(name, ABOUT[name], False, note=told)


def _not_tested(names: Iterable[str], reason: str) -> list[Check]:
    return [Check(name, ABOUT[name], None, note=reason) for name in names]


def _model(spec: ModelSpec, device: str, folder: Path | None) -> Model:
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


def _loaded(model: Model, adapter: Adapter) -> Model:
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


def _files(folder: Path) -> Files | None:
    try:
        names = weights.shards(folder)
    except ModelError:  # an index that is none; loading says so too
        return None
    there = ((name, folder / name) for name in names)
    return Files({name: path.stat().st_size if path.is_file() else None for name, path in there}, None)


def _parts(adapter: Adapter, batch: Batch) -> Parts:
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


def _rows(adapter: Adapter, batch: Batch, widths: Mapping[Site, int]) -> tuple[Row, ...]:
    """Residual sites, then keys and values; neighbours as wide as each other are one row."""
    patches, size = batch.image_at.shape[1], adapter.model.dtype.itemsize
    streams = ("key", "value")
    order = [*adapter.sites(), *(site for one in streams for site in adapter.known_sites() if site.stream == one)]
    found = []
    for (*_, width), some in itertools.groupby(order, lambda one: (one.stage, one.stream, one == FINAL, widths[one])):
        alike = [str(site) for site in some]
        found.append(Row(alike[0], alike[-1], len(alike), width, patches * width * size))
    return tuple(found)


def _tokens(adapter: Adapter, batch: Batch, name: str, size: tuple[int, int]) -> Tokens:
    placement, grid_map, declared = adapter.placement(size), batch.grids[0], adapter.declared
    h, w = placement.grid
    top, left, bottom, right = grid_map.seen
    edges = {"top": top, "left": left, "bottom": size[0] - bottom, "right": size[1] - right}
    kinds = [f"{declared.registers} registers"] if declared.registers else []
    kinds += ["newlines, and the view that is not read"] if declared.newlines else []
    held = np.unique(patch_index(grid_map))
    return Tokens(
        image=name,
        size=size,
        picture=adapter.layout.framing.size(size),
        preprocess=adapter.spec.preprocess,
        grid=(h, w),
        tokens=placement.tokens,
        placeless=placement.tokens - h * w,
        kinds=", ".join(kinds),
        empty=h * w - int((held >= 0).sum()),
        unseen=1 - (bottom - top) * (right - left) / (size[0] * size[1]),
        edges={edge: count for edge, count in edges.items() if count},
        sequence=batch.inputs["input_ids"].shape[1],
    )


def _memory(adapter: Adapter, batch: Batch, widths: Mapping[Site, int]) -> Memory:
    size, patches = adapter.model.dtype.itemsize, batch.image_at.shape[1]
    features = patches * size * sum(widths[site] for site in adapter.sites())
    states = batch.inputs["input_ids"].shape[1] * size * widths[Site("llm", adapter.depth)]
    return Memory(
        weights=sum(one.numel() * one.element_size() for one in adapter.model.parameters()),
        batches={str(images): images * (features + 2 * states) for images in BATCHES},
        held=HELD * features,
        held_images=HELD,
    )


def _views(adapter: Adapter, sample: Sample) -> tuple[View, ...]:
    image = sample.image.convert("RGB")
    picture = adapter.layout.framing.picture(image)
    placement = adapter.placement((image.height, image.width))
    whole = Framing("native", (0, 0, 0)).grid_map(placement, (picture.height, picture.width))
    return (
        View("the image", image, adapter.grid_map((image.height, image.width))),
        View(f"what the processor is given ({adapter.spec.preprocess})", picture, whole),
    )


def _known(value: Any) -> Any:
    """A value less all None in it."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    return [_known(one) for one in value] if isinstance(value, list | tuple) else value
