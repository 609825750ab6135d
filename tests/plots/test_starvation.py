"""The starvation gap as a curve and as a map."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import BIDIR

from segbench.plots import base, starvation


@pytest.fixture(scope="module")
def gap(pair, probes):
    ((_, _, gap),) = starvation.gaps(pair, probes)
    return gap


def test_the_curve_shows_the_first_fifty_patches(gap):
    with base.canvas(3) as figure:
        axes = figure.subplots()
        starvation.curve(axes, gap)
    (line,) = (one for one in axes.lines if one.get_color() == starvation.COLOUR)
    np.testing.assert_array_equal(line.get_ydata(), gap.positions[:50])
    assert starvation.told(gap.first) in axes.get_title(loc="right")
    rows = [one.get_xdata()[0] for one in axes.lines if one.get_color() == base.GREY and one.get_xdata()[0] > 0]
    assert rows == [11.5, 23.5, 35.5, 47.5]


def test_the_map_is_the_grid_on_a_scale_around_zero(gap):
    positions = gap.positions.copy()
    positions[7] = np.nan
    with base.canvas(3) as figure:
        axes = figure.subplots()
        starvation.heat(figure, axes, replace(gap, positions=positions))
    from matplotlib.patches import Rectangle

    (image,) = axes.images
    shown = np.ma.asarray(image.get_array())
    assert shown.mask.sum() == 1
    assert shown.mask[0, 7]
    np.testing.assert_array_equal(shown.compressed(), np.delete(positions, 7))
    low, high = image.get_clim()
    assert -low == high == np.nanmax(np.abs(positions))
    blue = image.to_rgba(np.array([[high]]))[0, 0]
    assert blue[2] > blue[0]  # where the model is ahead of its baseline
    (frame,) = axes.patches
    assert isinstance(frame, Rectangle)
    assert (frame.get_xy(), frame.get_width()) == ((-0.5, -0.5), 3)


def test_a_model_without_its_baseline_has_no_picture(pair, tmp_path):
    assert starvation.draw([one for one in pair if one.model == BIDIR.name], tmp_path) == []


def test_a_pair_that_cannot_be_compared_is_told(pair, probes, caplog):
    other = [
        replace(one, about={**one.about, "grid": [6, 24]})
        if (one.kind, one.model) == ("starvation", BIDIR.name)
        else one
        for one in pair
    ]
    assert starvation.gaps(other, probes) == []
    assert "differ in their grid" in caplog.text
