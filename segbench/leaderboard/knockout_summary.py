"""Does blocking the tokens of one class hold a confusion up, or resolve it? The curves of one knockout cell (Fig. 11)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segbench import stats
from segbench.stats import Estimate, Sampled
from segbench.store import Result
from segbench.types import Site


@dataclass(frozen=True)
class Persistence:
    """Wrongly predicted patches at every site in % of those at the adapter: mean of the ratios n / n0."""

    curves: Mapping[str, Mapping[str, Estimate]]  # condition -> site -> %
    images: int
    pairs: int  # (image, confused class)
    patches: int  # n0, over all pairs

    def at_last_layer(self, condition: str) -> Estimate | None:
        """What is left at the end of the LLM; the final norm moves no patch's neighbours and is not a layer."""
        layers = [
            site
            for site in map(Site.parse, self.curves.get(condition, {}))
            if site.stage == "llm" and site.layer != "norm"
        ]
        return self.curves[condition][str(max(layers, key=lambda site: int(site.layer)))] if layers else None


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
    curves: dict[str, dict[str, Estimate]] = {}
    for column, condition in enumerate(result.about["conditions"]):
        sampled = {
            site: Sampled(float(values[column, row]), drawn[:, column, row]).estimate()
            for row, site in enumerate(result.about["sites"])
        }
        curves[condition] = {site: estimate for site, estimate in sampled.items() if estimate}
    return Persistence(curves, len(ratios), len(n0), int(n0.sum()))
