"""Accuracy at every patch position, against label maps cut into patches by hand."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_runs

from segbench.errors import CellError
from segbench.kinds.base import peak_site
from segbench.types import Measure


def by_patch(maps):
    """[n, t, pixels]: label maps as the 8 x 12 pixels of every patch in raster order."""
    (h, w), (y, x) = tiny_runs.GRID, tiny_runs.PATCH
    return maps.reshape(-1, h, y, w, x).transpose(0, 1, 3, 2, 4).reshape(len(maps), h * w, y * x)


def test_every_labelled_pixel_is_counted_once(cells):
    arrays = cells["starvation"].arrays("positions")
    assert arrays["count"].sum() == tiny_runs.VAL * tiny_runs.SIZE[0] * tiny_runs.SIZE[1]
    assert (arrays["count"] == tiny_runs.PATCH[0] * tiny_runs.PATCH[1]).all()
    assert (arrays["hit"] <= arrays["count"]).all()


def test_accuracy_is_that_of_the_label_maps_cut_by_hand(cells):
    examples = cells["probe"].arrays("examples")
    said, real = (np.stack([examples[f"{i}.{name}"] for i in range(4)]) for name in ("llm.2", "truth"))
    right = by_patch(said) == by_patch(real)
    np.testing.assert_array_equal(cells["starvation"].arrays("positions")["hit"], right.sum(2))
    found = {int(m.key): m.value for m in cells["starvation"].measures}
    expected = 100 * right.mean((0, 2))
    assert list(found) == list(range(36))
    np.testing.assert_allclose(list(found.values()), expected)


def test_the_peak_is_the_layer_with_the_highest_miou(cells):
    curve = {m.site: m.value for m in cells["probe"].measures if m.metric == "miou"}
    layers = {site: value for site, value in curve.items() if site.startswith("llm.") and site != "llm.norm"}
    assert cells["starvation-peak"].about["site"] == max(layers, key=layers.__getitem__)


def test_the_first_of_two_equal_layers_is_the_peak(cells):
    curve = {"encoder": 9.0, "llm.10": 5.0, "llm.9": 5.0, "llm.norm": 7.0, "llm.2": 1.0}
    measures = tuple(Measure("miou", value, "%", 4, site) for site, value in curve.items())
    assert str(peak_site(replace(cells["probe"], measures=measures))) == "llm.9"
    with pytest.raises(CellError, match="no LLM layer"):
        peak_site(replace(cells["probe"], measures=measures[:1]))
