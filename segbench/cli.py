"""The command line. Data goes to standard output, everything said about it to standard error.

Exit codes: 0 all is there, 1 a gate failed, 2 a wrong command or spec, 3 not comparable, 4 something is missing, failed
or was stopped, 130 interrupted. Nothing heavy is imported before a command needs it: help, list and show stay instant.
"""

import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import segbench
from segbench import registry, strict_yaml
from segbench.errors import MissingInput, SegbenchError, SpecError, Stopped

if TYPE_CHECKING:
    from segbench.library import Library
    from segbench.runner import Item, Options, Outcome
    from segbench.store import Result

OK, WRONG, INCOMPLETE, INTERRUPTED = 0, 2, 4, 130
RUNS = Path("segbench-runs")
DEMO_MODELS = "tiny-clip-causal,tiny-clip-bidir,tiny-clip-random"
FINISHED = ("done", "ran")
ALIASES = {  # how other harnesses call the same thing
    "models": "model",
    "task": "tasks",
    "seeds": "seed",
    "output-path": "output",
    "include-path": "include",
}


def _normalised(word: str) -> str:
    """Options and commands by the names that people of other harnesses type: `--batch_size`, `--include_path`."""
    dashed = word.replace("_", "-")
    return ALIASES.get(dashed, dashed)


app = typer.Typer(
    name="segbench",
    help="Where in a multimodal LLM is the ability to segment lost, where does it come back, and what in attention "
    "does it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _normalised},
)
board = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(board, name="leaderboard", help="Make tables and pictures of what was measured.")

Include = Annotated[
    list[Path] | None,
    typer.Option(exists=True, metavar="PATH", help="your own YAML files and modules: a folder or a file; repeatable"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="images per split; such cells never enter the leaderboard")]
BatchSize = Annotated[int, typer.Option(min=1, help="images per forward; changes no number")]
Examples = Annotated[int, typer.Option(min=0, help="images whose predicted label maps are kept")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Seed = Annotated[str, typer.Option(help="of the probes: 0, or several as 0,1,2")]
Output = Annotated[Path, typer.Option(file_okay=False, help="folder of the cells, the leaderboard and its figures")]
Figures = Annotated[bool, typer.Option(help="draw the pictures (needs matplotlib)")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="tell every cell, its state and its cost; measure nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="data as JSON")]


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="tell the version")] = False) -> None:
    if version:
        print(segbench.__version__)
        raise typer.Exit()


@app.command()
def run(
    model: Annotated[str, typer.Option(help="names with commas, patterns such as 'tiny-*', or all")],
    tasks: Annotated[str, typer.Option(help="names or groups with commas, patterns, or all")],
    limit: Limit = None,
    batch_size: BatchSize = 32,
    examples: Examples = 4,
    device: Device = "auto",
    seed: Seed = "0",
    output: Output = RUNS,
    include: Include = None,
    model_args: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="fields of the model cards to replace: weights, dtype ..."),
    ] = None,
    figures: Figures = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure models on tasks. What is finished is skipped; what was interrupted goes on."""
    from segbench.runner import Options

    options = Options(limit, _seeds(seed), batch_size, examples, device)
    asked = _Asked(model, tasks, options, output, tuple(include or ()), _overrides(model_args), figures, as_json)
    raise typer.Exit(_dry_run(asked) if dry_run else _run(asked))


@app.command()
def demo(
    limit: Limit = None,
    device: Device = "auto",
    seed: Seed = "0",
    output: Output = RUNS / "demo",
    figures: Figures = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the main job on the reference models, from cells to pictures."""
    same = {"device": device, "seed": seed, "output": output, "figures": figures, "dry_run": dry_run}
    run(DEMO_MODELS, "demo", limit, **same, as_json=as_json)


@app.command("list")
def list_(
    what: Annotated[Literal["models", "tasks", "data"], typer.Argument()],
    include: Include = None,
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from."""
    rows = _data_modules() if what == "data" else _entries(_library(include or ()), what)
    print(_json(rows) if as_json else _columns(rows))


@app.command()
def show(
    what: Annotated[Literal["model", "task"], typer.Argument()],
    name: str,
    include: Include = None,
    as_json: AsJson = False,
) -> None:
    """Print a model card or a task, defaults filled in."""
    library = _library(include or ())
    spec = library.model(name) if what == "model" else library.task(name)
    print(_json(spec.resolved()) if as_json else _yaml(spec.resolved()), end="\n" if as_json else "")


@board.command()
def build(output: Output = RUNS, figures: Figures = True, as_json: AsJson = False) -> None:
    """Write the table and the pictures of everything a folder holds."""
    from segbench.leaderboard import table

    results = _results(output)
    if not results:
        raise MissingInput(f"{output} holds no finished cell; first: segbench run --output {output}")
    _publish(results, output, figures)
    frame = table.build(results)
    print(_json(table.rows(frame)) if as_json else table.markdown(frame))


@app.command()
def doctor(include: Include = None, as_json: AsJson = False) -> None:
    """Look at what is installed and found here."""
    from segbench.doctor import examine

    findings = examine(_library(include or ()))
    problems = [one for one in findings if one.problem]
    if as_json:
        print(_json([{key: value for key, value in asdict(one).items() if value is not None} for one in findings]))
    else:
        print(_columns([{"what": one.what, "found": one.found} for one in findings]))
    for one in problems:
        _say(f"problem: {one.what}: {one.problem}")
    raise typer.Exit(INCOMPLETE if problems else OK)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe's YAML file, or a model whose folder has a recipe.yaml")],
    output: Annotated[Path | None, typer.Option(file_okay=False, help="folder of the new checkpoint")] = None,
    work: Annotated[Path | None, typer.Option(file_okay=False, help="folder of what several recipes share")] = None,
    include: Include = None,
) -> None:
    """Train a model from its recipe."""
    path = _recipe(recipe, _library(include or ()))
    from segbench.store import folder_name
    from segbench.training import train as fit
    from segbench.training.recipe import read

    name = read(path).name
    output = output or RUNS / "trained" / folder_name(name)
    if any(output.glob("*.safetensors")):
        raise SpecError(f"--output: {output} holds a checkpoint already; name another folder")
    print(fit(path, output, _say, work))
    _say(f"read it with: segbench run --model NAME --model-args weights={output} --tasks demo")


def main() -> None:
    """Run the command of sys.argv and leave with its exit code; errors that segbench raises become messages."""
    try:
        with _stopped_by(signal.SIGTERM):
            app()
    except Stopped:
        sys.exit(INCOMPLETE)
    except SegbenchError as error:
        _say(f"error: {error}")
        sys.exit(WRONG if isinstance(error, SpecError) else INCOMPLETE)


@dataclass(frozen=True)
class _Asked:
    """What `run` was asked for."""

    model: str
    tasks: str
    options: "Options"
    output: Path
    include: tuple[Path, ...]
    overrides: Mapping[str, Any]
    figures: bool
    as_json: bool


def _plan(asked: _Asked) -> "tuple[Item, ...]":
    from segbench import runner
    from segbench.specs import together
    from segbench.store import Store

    library = _library(asked.include)
    models, tasks = together(
        lambda: library.models(asked.model, asked.overrides or None), lambda: library.tasks(asked.tasks)
    )
    for problem in library.problems:
        _say(f"warning: {problem}")
    return runner.plan(library, models, tasks, Store(asked.output), asked.options)


def _run(asked: _Asked) -> int:
    from segbench import progress, runner

    items = _plan(asked)
    outcomes: list[Outcome] = []
    stopped = None
    try:
        with progress.watcher(len(items)) as watcher:
            for outcome in runner.run(items, asked.options, watcher, sys.argv):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        stopped = INTERRUPTED
    except Stopped:
        stopped = INCOMPLETE
    _tell(items, outcomes, stopped is not None)
    finished = [outcome.result for outcome in outcomes if outcome.result]
    if asked.as_json:
        print(_json([_row(outcome.item, outcome.status, outcome.note) for outcome in outcomes]))
    if stopped is not None:
        return stopped
    if finished:
        results = _results(asked.output, finished)
        _publish(results, asked.output, asked.figures)
        if not asked.as_json:
            print(_own(results, finished))
    return OK if all(outcome.status in FINISHED for outcome in outcomes) else INCOMPLETE


def _dry_run(asked: _Asked) -> int:
    """Every cell with its state and its cost; 4 where something is missing."""
    from segbench import runner

    rows = []
    for item in _plan(asked):
        if item.problem:
            rows.append(_row(item, item.problem.status, item.problem.note))
        elif runner.kept(item, asked.options):
            rows.append(_row(item, "done"))
        else:
            begun = item.cell is not None and item.cell.state() == "started"
            rows.append(_row(item, "would run", "goes on from its checkpoint" if begun else ""))
    if asked.as_json:
        print(_json(rows))
    else:
        shown = ("model", "task", "seed", "status", "cost", "note")
        print(_columns({key: row.get(key, "") for key in shown} for row in rows))
    return OK if all(row["status"] in ("done", "would run") for row in rows) else INCOMPLETE


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
            _say(f"{outcome.status}: {name(outcome.item)}: {outcome.note}")
            if outcome.trace and outcome.item.cell:
                _say(f"  the whole trace: {outcome.item.cell.path / 'failure.txt'}")
            elif outcome.trace:  # it broke before it had a place
                _say(outcome.trace)
    if stopped:
        _say("stopped; the same command goes on from the last epoch")


def _results(output: Path, finished: "Sequence[Result]" = ()) -> "list[Result]":
    """One result per cell of the store; of several fingerprints, the one just finished or else the latest."""
    from segbench.runner import latest
    from segbench.store import Store

    return latest(Store(output).results(), {one.fingerprint for one in finished})


def _publish(results: "Sequence[Result]", output: Path, figures: bool) -> None:
    """Write tables and pictures, and tell where they are."""
    from segbench.leaderboard.publish import publish

    _say(f"\nresults:  {output}")
    for path in publish(results, output):
        _say(f"table:    {path}")
    for path in _draw(results, output / "figures") if figures else ():
        _say(f"picture:  {path}")


def _draw(results: "Sequence[Result]", folder: Path) -> list[Path]:
    """The PNG files of all pictures, the overview first; nothing where matplotlib is not installed."""
    try:
        from segbench.plots import draw_all

        paths = draw_all(results, folder)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        _say("no pictures: matplotlib is not installed; pip install 'segbench[plots]'")
        return []
    return sorted((path for path in paths if path.suffix == ".png"), key=lambda path: (path.stem != "overview", path))


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
        names = ("model", "task", "seed", "limit", "metric", "site", "key", "value", "unit")
        measures = table.rows(table.records(others))
        shown = [name for name in names if any(name in one for one in measures)]
        parts.append(_columns({name: one.get(name, "") for name in shown} for one in measures))
    return "\n".join(parts)


def _entries(library: "Library", what: Literal["models", "tasks"]) -> list[dict[str, Any]]:
    """Models or tasks by what their files say; whether that is right, `show` tells."""
    type, keys = ("model", ("adapter", "attention", "baseline")) if what == "models" else ("task", ("kind", "groups"))
    for problem in library.problems:
        _say(f"warning: {problem}")
    return [
        {"name": one.name, **{key: one.document.value.get(key, "") for key in (*keys, "description")}}
        for one in library.entries()
        if one.type == type
    ]


def _data_modules() -> list[dict[str, Any]]:
    """The data sets, with the keys that a task's `data:` may have for each."""
    modules = {name: registry.module("data", name) for name in registry.names("data")}
    return [
        {"name": name, "keys": list(one.Params.model_fields), "description": (one.__doc__ or "").splitlines()[0]}
        for name, one in modules.items()
    ]


def _recipe(text: str, library: "Library") -> Path:
    """The file of a recipe, by its path or by the model that was trained with it."""
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    weights = library.model(text).weights
    if weights is None or not (weights / "recipe.yaml").is_file():
        raise MissingInput(f"{text}: there is no recipe.yaml beside its weights; name the file of a recipe instead")
    return weights / "recipe.yaml"


@contextlib.contextmanager
def _stopped_by(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the block with `Stopped`: every `finally` runs, and what is written is written whole."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, before)


def _library(include: Sequence[Path]) -> "Library":
    """All specs; the folders of the user's own can be imported from."""
    from segbench.library import Library

    for path in include:
        folder = str((path if path.is_dir() else path.parent).resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # behind everything installed: a data.py there shadows nothing
    return Library(include)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--seed: expected whole numbers such as 0 or 0,1,2, got {text!r}") from None
    if min(seeds) < 0:
        raise SpecError(f"--seed: expected numbers from 0 on, got {text!r}")
    return tuple(dict.fromkeys(seeds))


def _overrides(text: str | None) -> dict[str, Any]:
    """`key=value,key=value` with values as in YAML."""
    overrides: dict[str, Any] = {}
    for part in filter(None, (text or "").split(",")):
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise SpecError(f"--model-args: expected key=value with commas between, got {part!r}")
        overrides[key.strip().replace("-", "_")] = strict_yaml.scalar(value.strip())
    return overrides


def _columns(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as aligned text under the names of their keys; lists with commas."""
    from tabulate import tabulate

    shown = [
        {k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in row.items()} for row in rows
    ]
    return tabulate(shown, "keys", "plain", disable_numparse=True)


def _yaml(value: Any) -> str:
    from ruamel.yaml import YAML

    writer, text = YAML(), io.StringIO()
    writer.width = 10_000  # one line per value
    writer.dump(value, text)
    return text.getvalue()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)
