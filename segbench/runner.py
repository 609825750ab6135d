"""Models x tasks = cells. What is finished is skipped, what was interrupted goes on, a failure stops nothing else."""

import datetime
import gc
import hashlib
import importlib.metadata
import logging
import os
import platform
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import segbench
from segbench import registry
from segbench.errors import MissingInput, SegbenchError, SpecError, StoreError
from segbench.library import Library
from segbench.records import digest, readable
from segbench.specs import DataSpec, ModelSpec, Split, TaskSpec
from segbench.store import CELL, FAILURE, PROVENANCE, Cell, Result, Store

if TYPE_CHECKING:
    from segbench.adapters.base import Adapter

PROTOCOL = 2  # raised whenever the same spec may give other numbers than before

Status = Literal["done", "ran", "failed", "missing", "blocked", "busy"]

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    item: Item
    status: Status
    note: str = ""  # the remedy or the reason
    seconds: float = 0.0
    result: Result | None = None
    trace: str | None = None  # of an error that nobody expected


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def started(self, item: Item) -> None: ...

    def progress(self, images: int, total: int, what: str) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


def plan(
    library: Library, models: Sequence[ModelSpec], tasks: Sequence[TaskSpec], store: Store, options: Options
) -> tuple[Item, ...]:
    """Every cell with its fingerprint, models in their order, tasks after those they read. Loads no model.

    What is not there makes an item without a fingerprint rather than an error. SpecError if tasks need each other.
    """
    planning = _Planning(store, options, _numerics(options.device))
    for model in models:
        weights = _attempt(lambda model=model: _weights(model))
        for seed in sorted({seed for task in tasks for seed in options.seeds or range(task.seeds)}):
            for task, needed_by in _ordered(library, [task for task in tasks if options.seeds or seed < task.seeds]):
                planning.add(model, task, seed, needed_by, weights)
    return tuple(planning.items.values())


def run(items: Sequence[Item], options: Options, watcher: Watcher, command: Sequence[str] = ()) -> Iterator[Outcome]:
    """Measure what is not finished, yielding what becomes of every cell. A model is loaded when a cell first needs it.

    Raises nothing for a cell that fails; KeyboardInterrupt and Stopped pass through, and what was written stays valid.
    """
    this = _Run(options, watcher, tuple(command))
    for item in items:
        watcher.started(item)
        begun = time.monotonic()
        outcome = replace(this.measure(item), seconds=time.monotonic() - begun)
        if outcome.result:
            this.results[item.key] = outcome.result
        watcher.ended(outcome)
        yield outcome


def kept(item: Item, options: Options) -> Result | None:
    """The finished cell, if it is there undamaged, and holds as many examples as are wanted."""
    if item.cell is None or item.cell.state() != "done":
        return None
    try:
        result = item.cell.result()
    except StoreError as error:
        _log.warning("%s; the cell is measured again", error)
        return None
    enough = (result.examples or 0) >= options.examples or not (item.cell.path / "examples.safetensors").exists()
    return result if enough else None


def latest(results: Iterable[Result], current: Collection[str] = ()) -> list[Result]:
    """Of cells that measure the same (model, task, seed, limit) by different fingerprints, the one finished last.

    Those whose fingerprint is `current` go before all others: what was just asked for may be an older cell. A cell on a
    part of the data never takes the place of one on all of it.
    """

    def age(one: Result) -> tuple[Any, ...]:
        return one.fingerprint in current, (one.path / CELL).stat().st_mtime_ns, one.fingerprint

    newest: dict[tuple[Any, ...], Result] = {}
    for result in sorted(results, key=age):
        newest[result.model, result.task, result.seed, result.limit, "partial" in result.about] = result
    return sorted(newest.values(), key=lambda one: (one.model, one.task, one.seed, one.limit or 0))


class _Run:
    """What is known while cells are measured: finished results, and the one model that is in memory."""

    def __init__(self, options: Options, watcher: Watcher, command: tuple[str, ...]) -> None:
        self.options, self.watcher, self.command = options, watcher, command
        self.results: dict[tuple[str, str, int], Result] = {}
        self._model: ModelSpec | None = None
        self._adapter: "Adapter | SegbenchError | None" = None

    def measure(self, item: Item) -> Outcome:
        """Find or compute one cell."""
        if item.problem or item.cell is None:
            problem = item.problem or Problem("blocked", "")
            return Outcome(item, problem.status, problem.note, trace=problem.trace)
        if result := kept(item, self.options):
            return Outcome(item, "done", result=result)
        if absent := [name for name in item.required if (item.model.name, name, item.seed) not in self.results]:
            return Outcome(item, "blocked", f"needs {', '.join(absent)}, which did not finish")
        try:
            with item.cell.lock() as mine:
                if not mine:
                    return Outcome(item, "busy", "another process is measuring it; run again when that has finished")
                if result := kept(item, self.options):  # finished by that process in the meantime
                    return Outcome(item, "done", result=result)
                item.cell.reopen()
                self._compute(item, item.cell)
                return Outcome(item, "ran", result=item.cell.result())
        except Exception as error:  # the cell boundary: other cells go on, and nothing of this one counts
            problem = _told(error)
            if problem.trace:
                item.cell.note(FAILURE, problem.trace)
            return Outcome(item, problem.status, problem.note, trace=problem.trace)

    def _compute(self, item: Item, cell: Cell) -> None:
        from segbench.kinds.base import Job, Required

        begun = time.monotonic()
        adapter = self._load(item.model)
        results = {name: self.results[item.model.name, name, item.seed] for name in item.required}
        job = Job(
            adapter=adapter,
            params=item.task.params,
            cell=cell,
            required={name: Required(params, results[name]) for name, params in item.required.items()},
            seed=item.seed,
            limit=self.options.limit,
            batch_size=self.options.batch_size,
            examples=self.options.examples,
            progress=self.watcher.progress,
        )
        measures = list(registry.module("kinds", item.task.kind).run(job))
        header = {
            "revision": item.revision,
            "kind": item.task.kind,
            "seed": item.seed,
            "limit": self.options.limit,
            "examples": self.options.examples,
            "model_card": item.model.published(),
            "task_spec": item.task.published(),
            "inputs": item.inputs,
        }
        # First: a finished cell is never measured again, so nothing may fail once it is.
        provenance = _provenance(time.monotonic() - begun, self.command, adapter) | cell.provenance
        cell.note(PROVENANCE, readable(provenance))
        cell.finish(header, measures)

    def _load(self, model: ModelSpec) -> "Adapter":
        """The adapter of a model, in place of the one before; its error once more if it could not be loaded."""
        if self._model != model:
            from segbench.adapters import base

            self._model = self._adapter = None
            gc.collect()  # before the next model needs the memory
            self._adapter = _attempt(lambda: base.load(model, device(self.options.device)))
            self._model = model
        if isinstance(self._adapter, SegbenchError):
            raise self._adapter
        assert self._adapter is not None
        return self._adapter


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
            self.items[item.key] = replace(item, problem=_told(error))
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
            loaded = _attempt(lambda: data.load(split))
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


def _attempt(call: Any) -> Any:
    """The value of a call, or the error that it raised."""
    try:
        return call()
    except SegbenchError as error:
        return error


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


def _told(error: Exception) -> Problem:
    if isinstance(error, _Blocked):
        return Problem("blocked", str(error))
    if isinstance(error, SegbenchError):
        return Problem("missing" if isinstance(error, MissingInput) else "failed", str(error))
    trace = "".join(traceback.format_exception(error))
    return Problem("failed", f"{type(error).__name__}: {error}", trace)


def _provenance(seconds: float, command: Sequence[str], adapter: "Adapter") -> dict[str, Any]:
    """When, where and by what a cell was measured: nothing that its numbers depend on."""
    from segbench import kernels

    packages = ("torch", "transformers", "numpy", "pillow", "safetensors")
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": list(command),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": str(adapter.device),
        "evaluation": kernels.making(adapter.device),
        "image_processor": type(adapter.processor.image_processor).__name__,  # type: ignore[attr-defined]
        "selftests": dict(adapter.selftests),
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"segbench": segbench.__version__},
    }
