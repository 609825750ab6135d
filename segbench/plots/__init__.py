"""Pictures of results. A file in this folder is a picture: its `draw(results, folder)` draws what the results allow."""

from collections.abc import Sequence
from pathlib import Path

from segbench import registry
from segbench.store import Result


def draw_all(results: Sequence[Result], folder: Path) -> list[Path]:
    """Every picture that the results allow, as PNG and SVG; ImportError where matplotlib is not installed.

    The same results give the same bytes. What is missing (a baseline, an example) leaves its part out.
    """
    return [path for name in registry.names("plots") for path in registry.module("plots", name).draw(results, folder)]
