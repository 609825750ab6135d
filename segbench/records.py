"""Rows of the tables, and JSON that is the same bytes for the same facts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segbench.errors import CellError
from segbench.types import Interval, Measure, Unit


@dataclass(frozen=True)
class Record:
    """A measure with the names of its run: one row of every table. Absent is None."""

    model: str
    revision: str
    task: str
    fingerprint: str
    seed: int
    limit: int | None
    metric: str
    value: float
    unit: Unit
    count: int
    site: str | None = None
    key: str | None = None
    low: float | None = None  # of the 95 % interval
    high: float | None = None


def canonical(value: Any) -> str:
    """One line of JSON with sorted keys: equal facts give equal text. CellError for NaN, infinity and foreign types."""
    return _dumped(value, separators=(",", ":"))


def readable(value: Any) -> str:
    """As `canonical`, with one fact per line."""
    return _dumped(value, indent=1) + "\n"


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def measure_facts(measure: Measure) -> dict[str, Any]:
    """A measure as JSON: what is absent is left out. CellError for a value that is no finite number."""
    facts = {key: value for key, value in asdict(measure).items() if value is not None}
    try:
        canonical(facts)
    except CellError as error:
        where = " ".join(str(part) for part in (measure.metric, measure.site, measure.key) if part is not None)
        raise CellError(f"{where}: {error}") from error
    return facts


def measure(facts: Mapping[str, Any]) -> Measure:
    """The measure that `measure_facts` wrote down."""
    interval = facts.get("interval")
    return Measure(**{**facts, "interval": Interval(**interval) if interval else None})


def _dumped(value: Any, **layout: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, default=_number, **layout)
    except (TypeError, ValueError, RecursionError) as error:
        raise CellError(f"cannot be written down as JSON: {error}") from error


def _number(value: Any) -> Any:
    """numpy's numbers as Python's."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r} is no text, number, list or mapping of them")
