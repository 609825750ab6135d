"""Knockout curves."""

from itertools import pairwise

import pytest
from made_results import RANDOM, make

from segbench.leaderboard.knockout_summary import persistence
from segbench.plots import base, knockout


@pytest.fixture(scope="module")
def curves(pair):
    return persistence(next(one for one in pair if one.kind == "knockout"))


def test_every_condition_is_a_curve_from_100_at_the_adapter(curves):
    with base.canvas(3) as figure:
        axes = figure.subplots()
        knockout.plot(axes, curves)
    lines = {line.get_label(): line for line in axes.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {words for *_, words in base.CONDITIONS.values()}
    for condition, (colour, marker, _, words) in base.CONDITIONS.items():
        line = lines[words]
        assert list(line.get_xdata()) == [*range(9)]
        assert line.get_ydata()[0] == 100
        assert line.get_ydata()[-1] == curves.at_last_layer(condition).value
        assert (line.get_color(), line.get_marker()) == (colour, marker)


def test_names_at_the_ends_do_not_cover_each_other(tmp_path):
    """The random model's curves end within a few points."""
    curves = persistence(make(tmp_path, [RANDOM], ["knockout"], images=20)[0])
    with base.canvas(3) as figure:
        axes = figure.subplots()
        knockout.plot(axes, curves)
        knockout.name_ends(axes, curves)
        figure.draw_without_rendering()
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(boxes))


def test_a_panel_per_model_says_what_is_behind_it(pair, tmp_path):
    paths = knockout.draw([one for one in pair if one.kind == "knockout"][:1], tmp_path)
    assert [path.name for path in paths if path.suffix == ".png"] == [
        "knockout-knockout-scenes-seed0.png",
        "knockout-classes-knockout-scenes-tiny-clip-causal-seed0.png",
    ]
    together, by_class = (path.read_text() for path in paths if path.suffix == ".svg")
    assert "24 pairs" in together
    assert "order: as the paper" in together
    assert ">ceiling<" in by_class
    assert ">person<" not in by_class  # none of its patches was confused


def test_no_knockout_draws_nothing(probes, tmp_path):
    assert knockout.draw(probes, tmp_path) == []
