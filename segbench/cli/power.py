"""`segbench power`: how many images a difference needs, from cells that are there."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench.cli import board
from segbench.cli.options import RUNS, Json, Output, chosen
from segbench.cli.say import as_columns, as_json, say
from segbench.errors import MissingInput, SpecError

if TYPE_CHECKING:
    from segbench.leaderboard.power import Plan

LEGEND = """\
all in points. found: a 95 % interval that leaves zero out. smallest: the difference that is found in {power:g} % of
cases by as many images as were measured; needed: how many would find one of {difference:g} as often, were they like
these. Over images (or clusters of images) alone: other probe seeds spread, too."""


def power(
    difference: Annotated[float, typer.Option(help="points that should be found")],
    power: Annotated[float, typer.Option(help="in which share of cases it should be found")] = 0.8,
    model: Annotated[str | None, typer.Option(help="names or patterns with commas; left out: all")] = None,
    tasks: Annotated[str | None, typer.Option("--task", help="names or patterns with commas; left out: all")] = None,
    output: Output = RUNS,
    json: Json = False,
) -> None:
    """Tell how many images a difference needs, from what was measured; a limited run will do as a pilot."""
    from segbench.leaderboard.power import plans

    if not difference > 0:
        raise SpecError(f"--difference: expected points above zero, got {difference:g}")
    if not 0.5 < power < 1:
        raise SpecError(f"--power: expected a share between 0.5 and 1, got {power:g}")
    results = board.results(output)
    found = [one for one in plans(results, difference, power) if chosen(one.model, model) and chosen(one.task, tasks)]
    if not found:
        known = sorted({f"{one.model} on {one.task}" for one in results})
        raise MissingInput(
            f"{output} holds no finished cell with a difference to plan for"
            + (f", only {', '.join(known)}" if known else "")
            + f"; first, a pilot: segbench run --limit 100 --output {output} --model ... --tasks ..."
        )
    print(as_json([_facts(one) for one in found]) if json else as_columns(map(_line, found)))
    if not json:
        say(LEGEND.format(power=100 * power, difference=difference))


def _facts(plan: "Plan") -> dict[str, Any]:
    """A plan as JSON: four decimals; what is absent is left out."""
    facts = {key: one for key, one in asdict(plan).items() if one is not None}
    return {key: round(one, 4) if isinstance(one, float) else one for key, one in facts.items()}


def _line(plan: "Plan") -> dict[str, str]:
    return {
        "model": plan.model,
        "task": plan.task,
        "seed": str(plan.seed),
        "quantity": plan.quantity,
        "measured": f"{plan.value:+.2f} +- {plan.half:.2f}",
        "SE": f"{plan.error:.2f}",
        "smallest": f"{plan.smallest:.2f}",
        "over": f"{plan.measured} {plan.unit}" + (f" (pilot: {plan.pilot})" if plan.pilot else ""),
        "needed": str(plan.needed),
    }
