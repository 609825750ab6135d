"""`segbench train`: a model from its recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segbench.cli.options import RUNS, Include, library
from segbench.cli.say import say
from segbench.errors import MissingInput, SpecError

if TYPE_CHECKING:
    from segbench.library import Library


def train(
    recipe: Annotated[str, typer.Argument(help="a recipe's YAML file, or a model whose folder has a recipe.yaml")],
    output: Annotated[Path | None, typer.Option(file_okay=False, help="folder of the new checkpoint")] = None,
    work: Annotated[Path | None, typer.Option(file_okay=False, help="folder of what several recipes share")] = None,
    include: Include = None,
) -> None:
    """Train a model from its recipe."""
    path = _recipe(recipe, library(include))
    from segbench.store import folder_name
    from segbench.training import train as fit
    from segbench.training.recipe import read

    name = read(path).name
    output = output or RUNS / "trained" / folder_name(name)
    if any(output.glob("*.safetensors")):
        raise SpecError(f"--output: {output} holds a checkpoint already; name another folder")
    print(fit(path, output, say, work))
    say(f"read it with: segbench run --model NAME --model-args weights={output} --tasks demo")


def _recipe(text: str, specs: "Library") -> Path:
    """The file of a recipe, by its path or by the model that was trained with it."""
    path = Path(text)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    weights = specs.model(text).weights
    if weights is None or not (weights / "recipe.yaml").is_file():
        raise MissingInput(f"{text}: there is no recipe.yaml beside its weights; name the file of a recipe instead")
    return weights / "recipe.yaml"
