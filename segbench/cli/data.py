"""`segbench data`: get published data sets, tell where they are, and prove that they are whole and as published."""

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench.cli.options import Data, Json
from segbench.cli.say import FAILED, INCOMPLETE, OK, as_columns, as_json, say, shown
from segbench.errors import DataError
from segbench.files import data_home, said_bytes, write_whole, writing

if TYPE_CHECKING:
    from segbench.data.facts import Published
    from segbench.data.there import There
    from segbench.data.transfer import Tell
    from segbench.data.verify import Report

PROBLEMS = 20  # told one by one

Name = Annotated[str, typer.Argument(metavar="NAME", help="a published data set: segbench data where lists them")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def get(
    name: Name,
    data: Data = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="do not delete the archives when they are unpacked")
    ] = False,
) -> None:
    """Download, verify and unpack a data set, or tell how to get it where its terms want a person for that."""
    from segbench.data import download
    from segbench.data.there import module, there

    known, home = module(name).Params.known, data or data_home()
    say(f"{known.title}\nterms:  {known.terms}\npage:   {known.page}")
    here = there(name, home)
    if here.complete:
        say(f"all images are there already: {_verified(here)}")
        print(here.path)
        return
    if not known.archives:
        _tell_how(known, here.path)
        raise typer.Exit(INCOMPLETE)

    def check(folder: Path) -> None:
        root = folder / known.folder
        found = there(name, home, root if root.is_dir() else folder)
        if not found.complete:
            raise DataError(f"{folder}: the archives do not hold all of {known.title} ({found.problem or found.state})")

    with _progress() as tell:
        path = download.get(known, home, check, keep_archives, tell)
    kept = "kept in" if keep_archives else "deleted from"
    say(f"downloaded, its checksums right, unpacked; archives {kept} {home / 'archives' / name}")
    say(f"next:   segbench data verify {name}")
    print(path)


@app.command()
def where(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, data: Data = None, json: Json = False
) -> None:
    """Tell where data sets are looked for, what is there, and when it was verified."""
    from segbench.data.there import modules, there

    home = data or data_home()
    found = [there(one, home) for one in ([name] if name else modules())]
    if json:
        print(as_json({"data": str(home), "sets": [_facts(one) for one in found]}))
        return
    say(f"data folder: {home} (another one: --data FOLDER, SEGBENCH_DATA, or `path:` in a task's data)\n")
    rows = [
        {"name": one.name, "state": one.state, "verified": _verified(one), "looked for in": one.path} for one in found
    ]
    print(as_columns(rows))
    for one in found:
        if one.problem:
            say(f"{one.name}: {shown(one.problem)}")


@app.command("verify")
def verify_(
    name: Name,
    data: Data = None,
    path: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="its folder, if that is not in the data folder")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="images that are not there are no problem")] = False,
    manifest: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE", help="also write the manifest, as JSON")
    ] = None,
    json: Json = False,
) -> None:
    """Read every file, count every label, compare with what is published. Exits 1 if anything is wrong."""
    from segbench.data import verify

    with _progress() as tell:
        report = verify.verify(name, data or data_home(), path, partial, tell)
    if json:
        print(as_json(_report(report)))
    else:
        print("\n".join(_lines(report)))
    for problem in report.problems[:PROBLEMS]:
        say(f"problem: {shown(problem)}")
    if len(report.problems) > PROBLEMS:
        say(f"and {len(report.problems) - PROBLEMS} more problems (--json lists all)")
    if report.problems:
        say(f"not verified: {len(report.problems)} problems")
        raise typer.Exit(FAILED)
    if manifest is not None:
        with writing(manifest.parent):
            write_whole(manifest, verify.manifest_text(report).encode())
        say(f"manifest: {manifest}")
    raise typer.Exit(OK)


def _tell_how(known: "Published", place: Path) -> None:
    say("\nIt must be got by hand, by somebody who accepts these terms:")
    for one in known.wanted:
        say(textwrap.indent(one, "  - "))
    say(f"Put it so that this folder holds it: {place}\nthen: segbench data verify {known.name}")


def _verified(one: "There") -> str:
    if not one.verified:
        return "not verified"
    return f"verified {one.verified}" + (f", {one.changed:,} files changed since" if one.changed else "")


def _facts(one: "There") -> dict[str, Any]:
    facts = {
        "name": one.name,
        "title": one.title,
        "path": str(one.path),
        "state": one.state,
        "images": {split: {"there": there, "published": all_} for split, (there, all_) in one.splits.items()},
        "problem": one.problem,
        "verified": one.verified,
        "changed_since": one.changed if one.verified else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _report(report: "Report") -> dict[str, Any]:
    content = {key: value for key, value in report.content().items() if key != "files"}
    return {
        "ok": not report.problems,
        "path": str(report.root),
        "problems": report.problems,
        "compared": {split: one.compared for split, one in report.splits.items()},
        "seconds": round(report.seconds, 1),
        "files": len(report.files),
        "bytes": report.bytes,
        "digest": report.digest,
        **content,
    }


def _lines(report: "Report") -> Iterator[str]:
    yield f"{report.name}: {report.root}"
    for split, one in report.splits.items():
        yield f"{split}: {one.images:,} of {one.published:,} images, {one.compared}"
        yield f"{split}: manifest {one.manifest or 'not made'}"
    yield f"files: {len(report.files):,}, {said_bytes(report.bytes)}, read in {report.seconds:.1f} s"
    if not report.problems:
        yield f"digest: {report.digest}"


@contextlib.contextmanager
def _progress() -> "Iterator[Tell]":
    """A bar on standard error for every stretch of work; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks = dict[str, Any]()

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell
