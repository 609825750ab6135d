"""The labels of a split beside what is published of them: a set shifted by one class is found, whole as it may be.

published/NAME.json says how many images of a split hold a class and how many pixels it has (null where nobody counted),
who counted, and by what share (`tolerance`) or by how many images (`slack`) that may be off.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

NAMED = 5  # classes in a message
AGREE = 0.9  # of the classes, for a shift to be told


def wrong(
    classes: Sequence[str],
    images: Int64[np.ndarray, " k"],
    pixels: Int64[np.ndarray, " k"],
    published: Mapping[str, Any],
) -> Iterator[str]:
    """What to say where classes are in too many or too few images or pixels; nothing where all is as published."""
    for what, found in (("images", images), ("pixels", pixels)):
        if published[what] is None:
            continue
        expected, allowed = _expected(published, what)
        away = np.flatnonzero(np.abs(found - expected) > allowed)  # not a number: nobody counted, nothing is wrong
        if len(away):
            named = [f"{classes[one]} {found[one]:,} instead of {expected[one]:,.0f}" for one in away[:NAMED]]
            yield (
                f"{len(away)} of {len(classes)} classes do not have the {what} that {published['source']} counted:"
                f" {', '.join(named)}{' ...' * (len(away) > NAMED)}{_shift(found, expected, allowed)}"
            )


def allowed(published: Mapping[str, Any]) -> str:
    """What labels were compared with, and how exactly, in words."""
    counted = " and ".join(what for what in ("images", "pixels") if published[what] is not None)
    slack = f" or {published['slack']} images" if published["slack"] else ""
    return f"{counted} of every class within {published['tolerance']:.1%}{slack} of {published['source']}"


def _expected(published: Mapping[str, Any], what: str) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    counts = np.array([np.nan if one is None else one for one in published[what]])
    return counts, np.maximum(published["tolerance"] * counts, published["slack"] if what == "images" else 0)


def _shift(found: Int64[np.ndarray, " k"], expected: Float[np.ndarray, " k"], allowed: Float[np.ndarray, " k"]) -> str:
    """What to add where nearly every class has what the one before or behind it should have."""
    for step in (1, -1):
        moved = np.roll(found, -step)
        fits = (np.abs(moved - expected) <= allowed)[~np.isnan(expected)]
        if len(fits) > 1 and fits.mean() >= AGREE:
            return f"; the labels seem to be shifted by {step:+d}"
    return ""
