"""`segbench list`, `show` and `doctor`: what there is, what it says, and whether it is usable here."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segbench import registry
from segbench.cli.options import Data, Include, Json, library
from segbench.cli.say import INCOMPLETE, OK, as_columns, as_json, as_yaml, say

if TYPE_CHECKING:
    from segbench.library import Library


def list_(
    what: Annotated[Literal["models", "tasks", "data"], typer.Argument()], include: Include = None, json: Json = False
) -> None:
    """List what there is to choose from."""
    rows = _data_modules() if what == "data" else _entries(library(include), what)
    print(as_json(rows) if json else as_columns(rows))


def show(
    what: Annotated[Literal["model", "task"], typer.Argument()],
    name: str,
    include: Include = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print a model card or a task, defaults filled in."""
    specs = library(include, data)
    spec = specs.model(name) if what == "model" else specs.task(name)
    print(as_json(spec.resolved()) if json else as_yaml(spec.resolved()), end="\n" if json else "")


def doctor(include: Include = None, data: Data = None, json: Json = False) -> None:
    """Look at what is installed and found here."""
    from segbench.doctor import examine

    findings = examine(library(include, data))
    problems = [one for one in findings if one.problem]
    if json:
        print(as_json([{key: value for key, value in asdict(one).items() if value is not None} for one in findings]))
    else:
        print(as_columns([{"what": one.what, "found": one.found} for one in findings]))
    for one in problems:
        say(f"problem: {one.what}: {one.problem}")
    raise typer.Exit(INCOMPLETE if problems else OK)


def _entries(specs: "Library", what: Literal["models", "tasks"]) -> list[dict[str, Any]]:
    """Models or tasks by what their files say; whether that is right, `show` tells."""
    type, keys = ("model", ("adapter", "attention", "baseline")) if what == "models" else ("task", ("kind", "groups"))
    for problem in specs.problems:
        say(f"warning: {problem}")
    return [
        {"name": one.name, **{key: one.document.value.get(key, "") for key in (*keys, "description")}}
        for one in specs.entries()
        if one.type == type
    ]


def _data_modules() -> list[dict[str, Any]]:
    """The data sets, with the keys that a task's `data:` may have for each."""
    modules = {name: registry.module("data", name) for name in registry.names("data")}
    return [
        {"name": name, "keys": list(one.Params.model_fields), "description": (one.__doc__ or "").splitlines()[0]}
        for name, one in modules.items()
    ]
