"""Does blocking the tokens of one class hold a confusion up, or resolve it? One knockout cell (Fig. 11)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segbench import stats
from segbench.stats import Estimate, Sampled
from segbench.store import Result
from segbench.types import Site

Verdict = Literal["as the paper", "against the paper", "undecided"]
CONTROL = "random"
EXPECTED = {"incorrect": -1, "correct": +1}  # sign of what is left minus the control: the paper's order


@dataclass(frozen=True)
class Persistence:
    """Wrongly predicted patches at every site in % of those at the adapter: mean of the ratios n / n0."""

    curves: Mapping[str, Mapping[str, Estimate]]  # condition -> site -> %
    effects: Mapping[str, Estimate]  # incorrect, correct -> points above the control at the last layer, paired
    images: int
    pairs: int  # (image, confused class)
    patches: int  # n0, over all pairs

    def at_last_layer(self, condition: str) -> Estimate | None:
        """What is left at the end of the LLM; the final norm moves no patch's neighbours and is not a layer."""
        curve = self.curves.get(condition, {})
        return curve.get(_last_layer(curve) or "")

    def verdict(self) -> Verdict | None:
        """Whether tokens of the wrong class hold confusions up and those of the right class resolve them.

        The control is what is left when as many random tokens are blocked. `as the paper` takes both effects beyond
        their 95 % intervals, `against the paper` one of them beyond on the other side. None without a control.
        """
        if set(self.effects) != set(EXPECTED):
            return None
        signs = {name: _sign(effect) * EXPECTED[name] for name, effect in self.effects.items()}
        if min(signs.values()) < 0:
            return "against the paper"
        return "as the paper" if all(signs.values()) else "undecided"


def persistence(result: Result, only: str | None = None) -> Persistence:
    """The curves of one knockout cell, over all confused classes or one of them; images are what is resampled."""
    patches = result.arrays("patches")
    n, n0, image = patches["n"], patches["n0"], patches["image"]
    if only is not None:
        rows = patches["class"] == result.about["all_classes"].index(only)
        n, n0, image = n[rows], n0[rows], image[rows]
    ratios = stats.per_image(100 * n / n0[:, None, None], image)
    pairs = np.broadcast_to(stats.per_image(np.ones(len(n0)), image)[:, None, None], ratios.shape)
    values, drawn = stats.ratio(ratios, pairs), stats.ratio_draws(ratios, pairs, stats.resamples(len(ratios)))
    sampled = {
        condition: {
            site: Sampled(float(values[column, row]), drawn[:, column, row])
            for row, site in enumerate(result.about["sites"])
        }
        for column, condition in enumerate(result.about["conditions"])
    }
    curves = {
        condition: {site: estimate for site, one in curve.items() if (estimate := one.estimate())}
        for condition, curve in sampled.items()
    }
    last = _last_layer(result.about["sites"])
    effects = {}
    if last and CONTROL in sampled:
        for condition in (name for name in EXPECTED if name in sampled):
            if effect := (sampled[condition][last] - sampled[CONTROL][last]).estimate():
                effects[condition] = effect
    return Persistence(curves, effects, len(ratios), len(n0), int(n0.sum()))


def _last_layer(sites: Iterable[str]) -> str | None:
    layers = [site for site in map(Site.parse, sites) if site.is_layer]
    return str(max(layers, key=lambda site: int(site.layer))) if layers else None


def _sign(effect: Estimate) -> int:
    """-1 or +1 where the interval leaves zero out, else 0."""
    if effect.interval is None:
        return 0
    return int(effect.interval.low > 0) - int(effect.interval.high < 0)
