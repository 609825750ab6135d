"""`segbench run` and `segbench demo`: measure models on tasks, and tell what became of every cell."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench import registry
from segbench.cli import board, processes
from segbench.cli.options import (
    RUNS,
    Data,
    Device,
    DryRun,
    Figures,
    Include,
    Json,
    Limit,
    ModelArgs,
    Output,
    Preprocess,
    Seed,
    Weights,
    library,
    overridden,
)
from segbench.cli.say import INCOMPLETE, INTERRUPTED, OK, as_columns, as_json, say
from segbench.errors import Lost, SpecError, Stopped

if TYPE_CHECKING:
    from segbench.library import Library
    from segbench.planning import Item, Options
    from segbench.runner import Outcome
    from segbench.store import Result
    from segbench.team import Team

DEMO_MODELS = "tiny-clip-causal,tiny-clip-bidir,tiny-clip-random"
FINISHED = ("done", "ran")

BatchSize = Annotated[int, typer.Option(min=1, help="images per forward; changes no number")]
Share = Annotated[
    processes.Share, typer.Option(help="what each process of a torchrun does: whole cells, or a part of the images")
]
Examples = Annotated[int, typer.Option(min=0, help="images whose predicted label maps are kept")]


def run(
    model: Annotated[str, typer.Option(help="names with commas, patterns such as 'tiny-*', or all")],
    tasks: Annotated[str, typer.Option(help="names or groups with commas, patterns, or all")],
    limit: Limit = None,
    batch_size: BatchSize = 32,
    examples: Examples = 4,
    device: Device = "auto",
    seed: Seed = None,
    output: Output = RUNS,
    include: Include = None,
    data: Data = None,
    weights: Weights = None,
    preprocess: Preprocess = None,
    model_args: ModelArgs = None,
    figures: Figures = True,
    dry_run: DryRun = False,
    share: Share = "auto",
    json: Json = False,
) -> None:
    """Measure models on tasks. What is finished is skipped; what was interrupted goes on."""
    from segbench.planning import Options

    options = Options(limit, _seeds(seed), batch_size, examples, processes.device(device))
    overrides = overridden(model_args, weights, preprocess)
    specs = library(include, data)
    asked = _Asked(model, tasks, options, output, specs, overrides, weights is not None, figures, share, json)
    with processes.team() as team:
        code = _run(asked, team) if not dry_run else _dry_run(asked) if team.first else OK
    raise typer.Exit(code)


def demo(
    limit: Limit = None,
    device: Device = "auto",
    seed: Seed = None,
    output: Output = RUNS / "demo",
    figures: Figures = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run the main job on the reference models, from cells to pictures."""
    same = {"device": device, "seed": seed, "output": output, "figures": figures, "dry_run": dry_run}
    run(DEMO_MODELS, "demo", limit, **same, json=json)


@dataclass(frozen=True)
class _Asked:
    """What `run` was asked for."""

    model: str
    tasks: str
    options: "Options"
    output: Path
    specs: "Library"
    overrides: Mapping[str, Any]
    one_model: bool  # --weights are one model's
    figures: bool
    share: processes.Share
    json: bool


def _plan(asked: _Asked) -> "tuple[Item, ...]":
    from segbench import planning
    from segbench.specs import together
    from segbench.store import Store

    specs = asked.specs
    models, tasks = together(
        lambda: specs.models(asked.model, asked.overrides or None), lambda: specs.tasks(asked.tasks)
    )
    for problem in specs.problems:
        say(f"warning: {problem}")
    if asked.one_model and len(models) != 1:
        raise SpecError(f"--weights: one folder is one model's, but --model {asked.model!r} names {len(models)}")
    return planning.plan(specs, models, tasks, Store(asked.output), asked.options)


def _run(asked: _Asked, team: "Team") -> int:
    from segbench import progress, runner

    outcomes: Sequence[Outcome] = []
    items: Sequence[Item] = ()
    stopped = None
    try:
        if not team.first:
            team.meet()  # the first one has noted down the checksums of the data by then
        items = _plan(asked)
        if team.first:
            team.meet()
        mine, measuring = processes.shared(items, asked.share, team, asked.output)
        with progress.watcher(len(mine), team.rank if team.size > 1 else None, not measuring.first) as watcher:
            for outcome in runner.run(mine, asked.options, watcher, sys.argv, measuring):
                outcomes.append(outcome)
        outcomes = processes.gathered(items, outcomes, team, measuring)
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except Lost as lost:
        say(str(lost))
        stopped = INCOMPLETE
    except Stopped:
        stopped = INCOMPLETE
    if not team.first:
        return stopped or OK
    _tell(items, outcomes, stopped is not None)
    finished = [outcome.result for outcome in outcomes if outcome.result]
    if asked.json:
        print(as_json([_row(outcome.item, outcome.status, outcome.note) for outcome in outcomes]))
    if stopped is not None:
        return stopped
    if finished:
        results = board.results(asked.output, finished)
        board.publish(results, asked.output, asked.figures)
        if not asked.json:
            print(_own(results, finished))
    return OK if all(outcome.status in FINISHED for outcome in outcomes) else INCOMPLETE


def _dry_run(asked: _Asked) -> int:
    """Every cell with its state and its cost, also of keeping features; 4 where something is missing."""
    from segbench import runner

    rows = []
    for item in _plan(asked):
        if item.problem:
            rows.append(_row(item, item.problem.status, item.problem.note))
        elif runner.kept(item, asked.options):
            rows.append(_row(item, "done"))
        else:
            begun = item.cell is not None and item.cell.state() == "started"
            row = _row(item, "would run", "goes on from its checkpoint" if begun else "")
            rows.append(row | _features(item, asked))
    if asked.json:
        print(as_json(rows))
    else:
        shown = ("model", "task", "seed", "status", "cost", "note")
        print(as_columns({key: row.get(key, "") for key in shown} for row in rows))
        for row in rows:
            for line in row.get("features", ()):
                print(f"{row['model']} {row['task']}: features: {line}")
    return OK if all(row["status"] in ("done", "would run") for row in rows) else INCOMPLETE


def _features(item: "Item", asked: _Asked) -> dict[str, list[str]]:
    """What every feature policy would take, of a kind that can tell it before a model is loaded."""
    from segbench import planning

    kind = registry.module("kinds", item.task.kind)
    if "estimates" not in vars(kind):
        return {}
    device = planning.device(asked.options.device)
    return {"features": kind.estimates(item.task.params, item.model, item.images, asked.output, device)}


def _row(item: "Item", status: str, note: str = "") -> dict[str, Any]:
    """One cell; what is not known or says nothing is left out."""
    images = [f"{count} {split} images" for split, count in item.images.items()]
    reads = [f"what {name} kept" for name in item.required]
    known = {
        "model": item.model.name,
        "task": item.task.name,
        "seed": item.seed,
        "status": status,
        "cost": ", ".join(images + reads),
        "note": note,
        "images": dict(item.images),
        "needed_by": item.needed_by,
        "fingerprint": item.cell.fingerprint if item.cell else None,
        "path": str(item.cell.path) if item.cell else None,
    }
    return {key: value for key, value in known.items() if value not in (None, "", {})}


def _tell(items: "Sequence[Item]", outcomes: "Sequence[Outcome]", stopped: bool) -> None:
    """What became of every cell, and what to do about those that are not there."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from segbench.progress import STYLES, duration, name

    table = Table("model", "task", "seed", "cell", "time", box=None, padding=(0, 2, 0, 0))
    ended = {outcome.item.key: outcome for outcome in outcomes}
    for item in items:
        outcome = ended.get(item.key)
        status = outcome.status if outcome else "not reached"
        took = duration(outcome.seconds) if outcome and outcome.status == "ran" else ""
        cells = (item.model.name, item.task.name, str(item.seed), status, took)
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    console = Console(stderr=True, soft_wrap=True)
    console.print()
    console.print(table)
    for outcome in outcomes:
        if outcome.status not in FINISHED:
            say(f"{outcome.status}: {name(outcome.item)}: {outcome.note}")
            if outcome.trace and outcome.item.cell:
                say(f"  the whole trace: {outcome.item.cell.path / 'failure.txt'}")
            elif outcome.trace:  # it broke before it had a place
                say(outcome.trace)
    if stopped:
        say("stopped; the same command goes on from the last epoch")


def _own(results: "Sequence[Result]", finished: "Sequence[Result]") -> str:
    """The leaderboard's rows of some results, limited runs too, with what others in the store say about them.

    Kinds of the user's own have no row there: their measures are listed.
    """
    from segbench.leaderboard import table

    frame = table.build(results, limited=True)
    rows = frame.loc[frame["fingerprint"].isin([one.fingerprint[:16] for one in finished])]
    others = [one for one in finished if one.kind not in registry.names("kinds")]
    parts = [table.markdown(rows)] if len(rows) or not others else []
    if others:
        names = ("model", "task", "seed", "limit", "partial", "metric", "site", "key", "value", "unit")
        measures = table.rows(table.records(others))
        shown = [name for name in names if any(name in one for one in measures)]
        parts.append(as_columns({name: one.get(name, "") for name in shown} for one in measures))
    return "\n".join(parts)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--seed: expected whole numbers such as 0 or 0,1,2, got {text!r}") from None
    if min(seeds) < 0:
        raise SpecError(f"--seed: expected numbers from 0 on, got {text!r}")
    return tuple(dict.fromkeys(seeds))
