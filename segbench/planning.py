"""Models x tasks = cells: what each one reads, what it depends on, and where it is kept. Loads no model."""

import hashlib
import importlib.metadata
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from segbench import registry
from segbench.errors import MissingInput, SegbenchError, SpecError
from segbench.library import Library
from segbench.records import digest
from segbench.specs import DataSpec, ModelSpec, Split, TaskSpec
from segbench.store import Cell, Store

PROTOCOL = 2  # raised whenever the same spec may give other numbers than before

Status = Literal["done", "ran", "failed", "missing", "blocked", "busy"]


@dataclass(frozen=True)
class Options:
    """What a run may choose; only `seeds` and `limit` can change a number, and they are part of every fingerprint."""

    limit: int | None = None  # images per split
    seeds: tuple[int, ...] | None = None  # left out: as many as each task says, from 0 on
    batch_size: int = 32
    examples: int = 4  # images whose predicted label maps are kept
    device: str = "auto"


@dataclass(frozen=True)
class Problem:
    """Why a cell cannot be measured, or was not."""

    status: Status
    note: str  # the remedy or the reason
    trace: str | None = None  # of an error that nobody expected


@dataclass(frozen=True)
class Item:
    """One cell that a run is about. Without a fingerprint it cannot be measured, and `problem` says why."""

    model: ModelSpec
    task: TaskSpec
    seed: int
    needed_by: str | None  # the task that asked for this one, where the user did not
    required: Mapping[str, Any]  # params of the tasks whose cells it reads
    images: Mapping[str, int] = field(default_factory=dict)  # of each split that is read
    cell: Cell | None = None
    revision: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what the fingerprint is made of
    problem: Problem | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.model.name, self.task.name, self.seed


def plan(
    library: Library, models: Sequence[ModelSpec], tasks: Sequence[TaskSpec], store: Store, options: Options
) -> tuple[Item, ...]:
    """Every cell with its fingerprint, models in their order, tasks after those they read. Loads no model.

    What is not there makes an item without a fingerprint rather than an error. SpecError if tasks need each other.
    """
    planning = _Planning(store, options, _numerics(options.device))
    for model in models:
        weights = attempt(lambda model=model: _weights(model))
        for seed in sorted({seed for task in tasks for seed in options.seeds or range(task.seeds)}):
            for task, needed_by in _ordered(library, [task for task in tasks if options.seeds or seed < task.seeds]):
                planning.add(model, task, seed, needed_by, weights)
    return tuple(planning.items.values())


def device(name: str) -> str:
    """The device that `auto` stands for here; SpecError for one that this machine does not have."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise SpecError(f"--device: {name!r} cannot be used here ({reason}); auto or cpu can") from error
    return name


def told(error: Exception) -> Problem:
    if isinstance(error, _Blocked):
        return Problem("blocked", str(error))
    if isinstance(error, SegbenchError):
        return Problem("missing" if isinstance(error, MissingInput) else "failed", str(error))
    trace = "".join(traceback.format_exception(error))
    return Problem("failed", f"{type(error).__name__}: {error}", trace)


def attempt(call: Any) -> Any:
    """The value of a call, or the error that it raised."""
    try:
        return call()
    except SegbenchError as error:
        return error


class _Planning:
    """What is known while cells are planned: those before, and the splits that were looked up."""

    def __init__(self, store: Store, options: Options, numerics: Mapping[str, str]) -> None:
        self.store, self.options, self.numerics = store, options, numerics
        self.items: dict[tuple[str, str, int], Item] = {}
        self._splits: dict[str, Any] = {}

    def add(self, model: ModelSpec, task: TaskSpec, seed: int, needed_by: str | None, weights: Any) -> None:
        """One more cell; what it reads was added before. Its fingerprint is over all that can change a number."""
        required = {name: self.items[model.name, name, seed] for name in task.requires()}
        params = {name: one.task.params for name, one in required.items()}
        item = Item(model, task, seed, needed_by, params)
        try:
            if isinstance(weights, SegbenchError):
                raise weights
            for name, one in required.items():
                if one.problem:
                    raise _Blocked(f"needs {name}, which is {one.problem.status}")
            _check(task, {name: one.task for name, one in required.items()})
            manifests, images = self._data(task)
        except Exception as error:  # the cell boundary, as above: a data module of the user's may raise anything
            self.items[item.key] = replace(item, problem=told(error))
            return
        own = {name: registry.source(package, name) for package, name in _named(model, task)}
        inputs = {
            "protocol": PROTOCOL,
            "model": model.identity(),
            "weights": weights,
            "task": task.identity(),
            "data": manifests,
            "requires": {name: digest(one.inputs) for name, one in required.items()},
            "code": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in own.items() if path},
            "seed": seed,
            "limit": self.options.limit,
            "numerics": dict(self.numerics),
        }
        revision = (_revision(model) or weights or digest(model.identity()))[:12]
        cell = self.store.cell(model.name, task.name, digest(inputs))
        self.items[item.key] = replace(item, images=images, cell=cell, revision=revision, inputs=inputs)

    def _data(self, task: TaskSpec) -> tuple[dict[str, list[str]], dict[str, int]]:
        """Manifests of the splits behind each data set, and how many images of each split a run reads."""
        manifests: dict[str, list[str]] = {}
        images: dict[str, int] = {}
        for data in task.data():
            for split in ("train", "val"):
                manifest, size = self._split(data, split)
                manifests.setdefault(digest(data.identity()), []).append(manifest)
                images[split] = images.get(split, 0) + min(size, self.options.limit or size)
        return manifests, images

    def _split(self, data: DataSpec, split: Split) -> tuple[str, int]:
        key = digest([data.resolved(), split])
        if key not in self._splits:
            loaded = attempt(lambda: data.load(split))
            self._splits[key] = loaded if isinstance(loaded, SegbenchError) else (loaded.manifest, len(loaded))
        if isinstance(self._splits[key], SegbenchError):
            raise self._splits[key]
        return self._splits[key]


class _Blocked(SegbenchError):
    """A cell that this one reads is not there."""


def _check(task: TaskSpec, required: Mapping[str, TaskSpec]) -> None:
    """What the kind itself has to say about the tasks that it reads, if anything; SpecError with the file's name."""
    kind = registry.module("kinds", task.kind)
    if "check" not in vars(kind):
        return
    try:
        kind.check(task.params, required)
    except SpecError as error:
        raise SpecError(f"{task.path}: {error}") from error


def _ordered(library: Library, tasks: Sequence[TaskSpec]) -> list[tuple[TaskSpec, str | None]]:
    """The tasks and those they read, every one after what it needs, with the task that pulled it in."""
    ordered: dict[str, tuple[TaskSpec, str | None]] = {}
    asked = {task.name: task for task in tasks}

    def visit(task: TaskSpec, above: tuple[str, ...]) -> None:
        if task.name in above:
            raise SpecError(f"tasks need each other: {' -> '.join([*above[above.index(task.name) :], task.name])}")
        if task.name in ordered:
            return
        for name in task.requires():
            try:
                needed = asked.get(name) or library.task(name)
            except SpecError as error:
                raise SpecError(f"{task.path}: {task.name} needs the task {name!r}: {error}") from error
            visit(needed, (*above, task.name))
        ordered[task.name] = (task, None if task.name in asked else above[-1])

    for task in tasks:
        visit(task, ())
    return list(ordered.values())


def _weights(model: ModelSpec) -> str | None:
    """What identifies the model's weights; None for an adapter of your own that needs none."""
    if model.weights is None and model.hub is None and model.adapter not in registry.names("adapters"):
        return None
    from segbench.adapters import weights

    return weights.weights_identity(model)


def _revision(model: ModelSpec) -> str | None:
    """The commit of a hub model, if there is one to be told."""
    from segbench.adapters import weights

    return weights.revision(model)


def _named(model: ModelSpec, task: TaskSpec) -> Iterator[tuple[str, str]]:
    """The modules that a cell names, by registry."""
    yield "adapters", model.adapter
    yield "kinds", task.kind
    for one in task.data():
        yield "data", one.name


def _numerics(name: str) -> dict[str, str]:
    """What else the last digits depend on."""
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
    return versions | {"device": device(name).partition(":")[0]}
