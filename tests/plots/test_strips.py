"""Qualitative strips: the label maps that the probes read."""

import numpy as np
from made_results import CAUSAL, make

from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.plots import base, strips


def test_every_map_stands_under_its_site_in_the_colours_of_its_classes(probes):
    blocks = strips.examples(probes, 1)
    classes = probes[0].about["classes"]
    with base.canvas(strips.height(blocks)) as figure:
        strips.plot(figure, blocks, classes)
    shown = [axes for axes in figure.axes if axes.images]
    colours, kept = base.class_colours(len(classes)), probes[0].arrays("examples")
    assert len(shown) == 2 + 2 * 4
    np.testing.assert_array_equal(shown[0].images[0].get_array(), kept["0.image"])
    np.testing.assert_array_equal(shown[1].images[0].get_array(), base.painted(kept["0.truth"], colours))
    np.testing.assert_array_equal(shown[3].images[0].get_array(), base.painted(kept["0.adapter"], colours))
    right = 100 * (kept["0.adapter"] == kept["0.truth"]).mean()
    assert [axes.get_title() for axes in shown[:2]] == ["image", "truth"]
    assert shown[3].get_title() == f"adapter: {right:.0f} %"
    peak = f"llm.{drop_recovery(probes[0]).peak_layer}"
    assert [axes.get_title().split(":")[0] for axes in shown[2:6]] == ["encoder", "adapter", peak, "llm.8"]


def test_the_classes_are_named_beside_the_strips_or_below(probes):
    classes = probes[0].about["classes"]
    for some in (probes, probes[:1]):
        blocks = strips.examples(some, 1)
        with base.canvas(strips.height(blocks)) as figure:
            strips.plot(figure, blocks, classes)
        inside = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        assert bool(inside) == (len(some) == 2)
        (legend,) = inside or figure.legends
        maps = [one for block in blocks for strip in block for one in (strip.truth, *strip.read.values())]
        named = {text.get_text() for text in legend.texts} - {""}
        assert named == {classes[k] for k in np.unique(np.concatenate(maps))}


def test_runs_that_kept_no_example_draw_nothing(tmp_path):
    assert strips.draw(make(tmp_path, [CAUSAL], ["probe"], images=4, examples=0), tmp_path) == []
