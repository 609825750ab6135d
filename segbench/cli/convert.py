"""`segbench convert`: an original LLaVA-1.5 checkpoint as a folder that transformers and segbench read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from segbench.cli.say import say


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", exists=True, file_okay=False, help="folder that the original code wrote")
    ],
    output: Annotated[Path, typer.Option(file_okay=False, help="folder of the new checkpoint")],
    vision: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="folder of the vision tower's own checkpoint")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="folder of the LLM, where SRC holds mm_projector.bin alone"),
    ] = None,
    attention: Annotated[
        Literal["causal", "bidirectional"] | None,
        typer.Option(help="among image tokens, in training; written down, so that it is not run with another"),
    ] = None,
) -> None:
    """Turn an original LLaVA-1.5 checkpoint into one for transformers."""
    from segbench.convert.llava import convert

    convert(source, output, vision, base, attention, say)
    print(output)
    say(f"read it with: segbench run --model NAME --weights {output} --tasks demo")
