"""The command line. Data goes to standard output, everything said about it to standard error.

Nothing heavy is imported before a command needs it: help, list and show stay instant.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

import segbench
from segbench.cli import board, compare, convert, data, look, model, power, run, train
from segbench.cli.say import INCOMPLETE, NOT_COMPARABLE, WRONG, say
from segbench.errors import NotComparable, SegbenchError, SpecError, Stopped

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
app.command()(run.run)
app.command()(run.demo)
app.command("list")(look.list_)
app.command()(look.show)
app.command()(look.doctor)
app.command()(compare.compare)
app.command()(power.power)
app.command()(train.train)
app.command()(convert.convert)
app.add_typer(board.app, name="leaderboard", help="Make tables and pictures of what was measured.")
app.add_typer(data.app, name="data", help="Get published data sets, find and verify them.")
app.add_typer(model.app, name="model", help="Look into one model.", hidden=not model.app.registered_commands)


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="tell the version")] = False) -> None:
    if version:
        print(segbench.__version__)
        raise typer.Exit()


def main() -> None:
    """Run the command of sys.argv and leave with its exit code; errors that segbench raises become messages."""
    try:
        with _stopped_by(signal.SIGTERM):
            app()
    except Stopped:
        sys.exit(INCOMPLETE)
    except NotComparable as error:
        say(f"error: {error}")
        sys.exit(NOT_COMPARABLE)
    except SegbenchError as error:
        say(f"error: {error}")
        sys.exit(WRONG if isinstance(error, SpecError) else INCOMPLETE)


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
