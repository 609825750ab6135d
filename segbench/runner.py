"""Cells are measured: what is finished is skipped, what was interrupted goes on, a failure stops nothing else."""

import contextlib
import datetime
import gc
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import segbench
from segbench import registry
from segbench.errors import PartnerFailed, SegbenchError, StoreError
from segbench.planning import Item, Options, Problem, Status, attempt, device, told
from segbench.records import readable
from segbench.specs import ModelSpec
from segbench.store import CELL, FAILURE, PROVENANCE, Cell, Result
from segbench.team import Team

if TYPE_CHECKING:
    from segbench.adapters.base import Adapter

_log = logging.getLogger(__name__)


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


def run(
    items: Sequence[Item], options: Options, watcher: Watcher, command: Sequence[str] = (), team: Team | None = None
) -> Iterator[Outcome]:
    """Measure what is not finished, yielding what becomes of every cell. A model is loaded when a cell first needs it.

    A team measures every cell together, and each of its processes learns the same outcomes. Raises nothing for a cell
    that fails; KeyboardInterrupt and Stopped pass through, and what was written stays valid.
    """
    this = _Run(options, watcher, tuple(command), team or Team())
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

    def __init__(self, options: Options, watcher: Watcher, command: tuple[str, ...], team: Team) -> None:
        self.options, self.watcher, self.command, self.team = options, watcher, command, team
        self.results: dict[tuple[str, str, int], Result] = {}
        self._model: ModelSpec | None = None
        self._adapter: "Adapter | SegbenchError | None" = None

    def measure(self, item: Item) -> Outcome:
        """Find or compute one cell."""
        if item.problem or item.cell is None:
            problem = item.problem or Problem("blocked", "")
            return Outcome(item, problem.status, problem.note, trace=problem.trace)
        try:
            outcome = self._found_or_computed(item, item.cell)
            self.team.meet()  # the end of every cell: nobody is ahead
            return outcome
        except Exception as error:  # the cell boundary: other cells go on, and nothing of this one counts
            problem = told(error)
            if not isinstance(error, PartnerFailed):
                self.team.fail(problem.note)
            if problem.trace:
                with contextlib.suppress(OSError, SegbenchError):  # the disk may be what failed
                    item.cell.note(FAILURE, problem.trace)
            return Outcome(item, problem.status, problem.note, trace=problem.trace)

    def _found_or_computed(self, item: Item, cell: Cell) -> Outcome:
        if result := self._kept(item):
            return Outcome(item, "done", result=result)
        if absent := [name for name in item.required if (item.model.name, name, item.seed) not in self.results]:
            return Outcome(item, "blocked", f"needs {', '.join(absent)}, which did not finish")
        with cell.lock() as mine:
            if not mine:
                return Outcome(item, "busy", "another process is measuring it; run again when that has finished")
            if result := self._kept(item):  # finished by that process in the meantime
                return Outcome(item, "done", result=result)
            cell.reopen()
            self._compute(item, cell)
            self.team.meet()
            return Outcome(item, "ran", result=cell.result())

    def _kept(self, item: Item) -> Result | None:
        """As `kept` finds it in the first process."""
        result = kept(item, self.options) if self.team.first else None
        there = self.team.agree(result is not None)
        return result or (item.cell.result() if there and item.cell else None)

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
            team=self.team,
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
        provenance |= {"processes": self.team.size} if self.team.size > 1 else {}
        cell.note(PROVENANCE, readable(provenance))
        cell.finish(header, measures)

    def _load(self, model: ModelSpec) -> "Adapter":
        """The adapter of a model, in place of the one before; its error once more if it could not be loaded."""
        if self._model != model:
            from segbench.adapters import base

            self._model = self._adapter = None
            gc.collect()  # before the next model needs the memory
            self._adapter = attempt(lambda: base.load(model, device(self.options.device)))
            self._model = model
        if isinstance(self._adapter, SegbenchError):
            raise self._adapter
        assert self._adapter is not None
        return self._adapter


def _provenance(seconds: float, command: Sequence[str], adapter: "Adapter") -> dict[str, Any]:
    """When, where and by what a cell was measured: nothing that its numbers depend on."""
    from segbench import kernels
    from segbench.kernels import linear

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
        "products": linear.making(adapter.device),
        "image_processor": type(adapter.processor.image_processor).__name__,  # type: ignore[attr-defined]
        "selftests": dict(adapter.selftests),
        "versions": {name: importlib.metadata.version(name) for name in packages} | {"segbench": segbench.__version__},
    }
