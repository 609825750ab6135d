"""`segbench leaderboard build`: the table and the pictures of what a folder holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from segbench.cli.options import RUNS, Figures, Json, Output
from segbench.cli.say import INCOMPLETE, as_json, say
from segbench.errors import MissingInput

if TYPE_CHECKING:
    from segbench.store import Result

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def build(output: Output = RUNS, figures: Figures = True, json: Json = False) -> None:
    """Write the table and the pictures of everything a folder holds. Exits 4 if none of it is a whole run."""
    from segbench.leaderboard import table

    found = results(output)
    if not found:
        raise MissingInput(f"{output} holds no finished cell; first: segbench run --output {output}")
    publish(found, output, figures)
    frame = table.build(found)
    print(as_json(table.rows(frame)) if json else table.markdown(frame))
    left_out = frame.attrs["left_out"]
    if left_out and frame.empty:
        say(f"no leaderboard: {output} holds only runs that do not count: {'; '.join(left_out)}")
        raise typer.Exit(INCOMPLETE)


def results(output: Path, finished: "Sequence[Result]" = ()) -> "list[Result]":
    """One result per cell of the store; of several fingerprints, the one just finished or else the latest."""
    from segbench.runner import latest
    from segbench.store import Store

    return latest(Store(output).results(), {one.fingerprint for one in finished})


def publish(results: "Sequence[Result]", output: Path, figures: bool) -> None:
    """Write tables and pictures, and tell where they are."""
    from segbench.leaderboard import publish as tables

    say(f"\nresults:  {output}")
    for path in tables.publish(results, output):
        say(f"table:    {path}")
    for path in _draw(results, output / "figures") if figures else ():
        say(f"picture:  {path}")


def _draw(results: "Sequence[Result]", folder: Path) -> list[Path]:
    """The PNG files of all pictures, the overview first; nothing where matplotlib is not installed."""
    try:
        from segbench.plots import draw_all

        paths = draw_all(results, folder)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        say("no pictures: matplotlib is not installed; pip install 'segbench[plots]'")
        return []
    return sorted((path for path in paths if path.suffix == ".png"), key=lambda path: (path.stem != "overview", path))
