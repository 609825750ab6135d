"""Every self-test as a check of the report: what it is about, its verdict, and what an error leaves of it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from segbench.adapters import _generation, _selftest
from segbench.adapters.base import Adapter
from segbench.adapters.report.findings import Check
from segbench.errors import MissingInput, SegbenchError, SpecError

ABOUT = {  # every check, in order
    "load": "every file, tensor and part is there",
    "layout": "patches that an image token is away from its place",
    "encoder": "the same of the rows that the projector consumes",
    "plain": "the model's own forward pass against ours",
    "alone": "an image alone against itself in a batch of two",
    "first_token": "what the first image token hears of the last one",
    "behind": "what image tokens hear of words behind them",
    "leak": "what other image tokens hear of knocked-out ones",
    "effect": "what a knockout changes in other image tokens",
    "nothing": "what a knockout of no token changes",
    "example": "image tokens of the example image",
    "sites": "sites that can be read",
    "generate": f"{_generation.TOKENS} tokens with a cache against none",
    "generate_knockout": "a knockout held by generate() against ours",
}
LAYOUT, ATTENTION = ("layout", "encoder"), ("plain", "alone", "first_token", "behind")
KNOCKOUT, GENERATION = ("leak", "effect", "nothing"), ("generate", "generate_knockout")


def tried(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call gives, or the error it raised; missing weights and mistakes in a spec are raised on."""
    try:
        return call(), None
    except (MissingInput, SpecError):
        raise
    except Exception as error:  # the boundary: a checkpoint can make its model raise anything, and that is a finding
        return None, error


def collected(
    adapter: Adapter, names: Sequence[str], measure: Callable[[], Iterator[tuple[str, float]]]
) -> Iterator[Check]:
    """The checks with these names, in order; those that an error cut off failed with it."""
    found: dict[str, Check] = {}

    def collect() -> None:
        for name, value in measure():
            found[name] = _judged(adapter, name, value)

    _, problem = tried(collect)
    for name in names:
        if name in found:
            yield found[name]
        elif problem is None:
            yield from not_tested([name], "it does not apply to this model")
        else:
            yield failed(name, problem)


def failed(name: str, problem: Exception | None) -> Check:
    """The check that an error is the result of."""
    told = "nothing was measured" if problem is None else str(problem)
    if problem is not None and not isinstance(problem, SegbenchError):
        told = f"{type(problem).__name__}: {problem}"
    return Check(name, ABOUT[name], False, note=told)


def not_tested(names: Iterable[str], reason: str) -> list[Check]:
    """Checks that nobody can make here."""
    return [Check(name, ABOUT[name], None, note=reason) for name in names]


def _judged(adapter: Adapter, name: str, value: float) -> Check:
    if name in GENERATION:
        limit = _selftest.TOLERANCE[str(adapter.model.dtype).removeprefix("torch.")]
        wrong = "" if value <= limit else f"they differ by {value:.1e} of the rms: answers come from other states"
        one = _selftest.Verdict(name, value, f"<= {limit:g} of the rms", wrong)
    else:
        one = _selftest.verdict(name, value, adapter)
    number = value if math.isfinite(value) else None
    return Check(name, ABOUT.get(name, name), not one.wrong, number, one.limit, one.wrong or None)
