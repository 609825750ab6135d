"""What all pictures share."""

import matplotlib
import numpy as np
import pytest
from made_results import CAUSAL

from segbench.plots import base
from segbench.types import Interval


def test_the_style_is_our_own_whatever_the_user_has_set():
    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True}):
        with base.canvas(1):
            assert matplotlib.rcParams["lines.linewidth"] == base.STYLE["lines.linewidth"]
            assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_labels_are_moved_apart_and_keep_their_order():
    wanted = [5.0, 1.0, 5.1, 5.2, 9.0]
    placed = base.spread(wanted, 1.0)
    assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
    assert np.diff(sorted(placed)).min() >= 1.0 - 1e-9
    assert (placed[1], placed[4]) == (1.0, 9.0)
    assert np.mean([placed[0], placed[2], placed[3]]) == pytest.approx(5.1)


def test_class_colours_can_be_told_apart_without_green_cones():
    colours = base.class_colours(20).astype(float) / 255
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    for view in (np.eye(3), base._DEUTAN, base._PROTAN):
        seen = np.cbrt(np.clip(linear @ view.T, 0, None) @ base._CONES.T) @ base._OKLAB.T
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(20, 1)]
        assert apart.min() > 0.05


def test_more_classes_do_not_change_the_colours_of_the_first():
    np.testing.assert_array_equal(base.class_colours(4), base.class_colours(30)[:4])


def test_pixels_without_a_label_are_white():
    colours = base.class_colours(2)
    painted = base.painted(np.array([[0, 255, 1]], np.uint8), colours)
    np.testing.assert_array_equal(painted[0], [colours[0], [255, 255, 255], colours[1]])


def test_names_are_neither_mathematics_nor_paths(probes):
    assert base.plain("a$b$\n") == r"a\$b\$ "
    assert "/" not in base.stem("layers", probes[0], "../../x")


def test_no_interval_draws_no_band():
    low, high = base.band([Interval(1.0, 2.0), None])
    assert (low[0], high[0]) == (1.0, 2.0)
    assert np.isnan([low[1], high[1]]).all()


def test_models_differ_by_more_than_colour(pair):
    looks = base.looks(pair)
    assert len({look.marker for look in looks.values()}) == 2
    assert looks[CAUSAL.name].line != looks["tiny-clip-bidir"].line
    signs = [sign[1:3] for sign in base.CONDITIONS.values()]
    assert len(set(signs)) == len(signs)
