"""The layerwise curve shows the numbers of the leaderboard."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import BIDIR, CAUSAL, keep

from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.plots import base, layers
from segbench.types import Measure


def drawn(probes):
    """The three panels of some probe cells."""
    with base.canvas(4.8) as figure:
        layers.plot(figure, probes, base.looks(probes))
        figure.draw_without_rendering()
        return figure, *figure.axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def curve(axes, points):
    """The line of that many points in a panel, for each colour."""
    return {line.get_color(): line for line in axes.lines if len(line.get_ydata()) == points}


def test_the_curves_are_the_numbers(probes):
    _, left, right, _ = drawn(probes)
    looks = base.looks(probes)
    for probe in probes:
        anatomy, look = drop_recovery(probe), looks[probe.model]
        inside = curve(right, 8)[look.colour]
        values = [anatomy.curve[f"llm.{n}"].value for n in range(1, 9)]
        np.testing.assert_allclose(np.array(inside.get_ydata()), np.array(values))
        assert list(inside.get_xdata()) == [*range(1, 9)]
        assert inside.get_linestyle() == ("--" if probe.model == BIDIR.name else "-")
        ends = [line.get_ydata() for line in left.lines if line.get_label() == base.described(probe)]
        values = [anatomy.curve["encoder"].value, anatomy.curve["adapter"].value]
        np.testing.assert_allclose(np.array(ends), np.array([values]))


def test_bands_are_the_intervals(probes):
    _, _, right, _ = drawn(probes[:1])
    interval = drop_recovery(probes[0]).curve["llm.3"].interval
    (band,) = (one for one in right.collections if len(one.get_paths()[0].vertices) > 8)
    at = band.get_paths()[0].vertices
    assert sorted({round(y, 6) for x, y in at if x == 3}) == pytest.approx([interval.low, interval.high], abs=1e-5)


def test_drop_recovery_peak_and_the_encoders_level_are_marked(probes):
    _, left, right, end = drawn(probes)
    for probe in probes:
        anatomy, colour = drop_recovery(probe), base.looks(probes)[probe.model].colour
        assert f"{anatomy.drop.value:+.1f}" in texts(left)
        assert f"{anatomy.recovery.value:+.1f}" in texts(end)
        rings = [
            np.array(line.get_xydata())[0].tolist()
            for line in right.lines
            if line.get_markeredgecolor() == colour and line.get_markersize() == 11
        ]
        assert rings == [[anatomy.peak_layer, anatomy.peak.value]]
        levels = [line.get_ydata()[0] for line in right.lines if line.get_color() == colour and line.is_dashed()]
        assert anatomy.curve["encoder"].value in levels
    assert {"drop (pp)", "recovery (pp)"} <= {*texts(left), *texts(end)}


def with_oracle(probe, value):
    kept = tuple(one for one in probe.measures if one.metric != "oracle_miou")
    (oracle,) = set(probe.measures) - set(kept)
    return replace(probe, measures=(*kept, replace(oracle, value=value)))


def test_the_ceiling_is_a_line_where_the_curves_come_near_it(probes):
    near = drop_recovery(probes[0]).peak.value + 5
    figure, _, right, _ = drawn([with_oracle(probes[0], near)])
    assert [near, near] in [list(line.get_ydata()) for line in right.lines]
    assert "best that these patches allow" in [text.get_text() for text in figure.legends[0].texts]


def test_a_far_ceiling_is_a_number_and_leaves_the_axis_alone(probes):
    _, _, right, _ = drawn([with_oracle(probes[0], 99.5)])
    assert "↑ best that these patches allow: 99.5 %" in texts(right)
    assert right.get_ylim()[1] < 99.5


@pytest.mark.parametrize("kept", [("encoder", "adapter"), ("llm.1", "llm.2", "llm.3"), ("encoder", "llm.2")])
def test_what_was_not_probed_leaves_its_part_out(probes, kept, tmp_path):
    rows = [probes[0].about["sites"].index(site) for site in kept]
    counts = {"best": probes[0].arrays("counts")["best"][rows]}
    cut = keep(tmp_path, CAUSAL, "probe", {"counts": counts}, {**probes[0].about, "sites": list(kept)})
    figure, left, right, end = drawn([cut])
    signs = {text.get_text() for text in figure.legends[0].texts} if figure.legends else set()
    assert ("encoder's level" in signs) == ("encoder" in kept)
    assert ("peak LLM layer" in signs) == any(site.startswith("llm") for site in kept)
    assert "after the final norm" not in signs
    assert ("drop (pp)" in texts(left)) == ("adapter" in kept)
    assert "recovery (pp)" not in texts(end)
    layer = [n for n in (1, 2, 3) if f"llm.{n}" in kept]
    assert layer in [list(line.get_xdata()) for line in right.lines] or not layer
    assert len([line for line in right.lines if line.get_markersize() == 11]) == bool(layer)


def test_the_picture_names_task_images_and_limit(probes, tmp_path):
    limited = [replace(one, limit=4) for one in probes]
    png, svg = layers.draw(limited, tmp_path)
    assert png.name == "layers-probe-scenes-seed0-limit4.png"
    assert "probe-scenes, 12 images, seed 0 (limited to 4 images)" in svg.read_text()
    assert CAUSAL.name in svg.read_text()


def test_controls_are_grey_lines_with_their_own_signs(probes):
    probe = probes[0]
    shuffled = [Measure("shuffled_miou", 4.0 + n, "%", 60, f"llm.{n}") for n in range(1, 9)]
    more = (*probe.measures, Measure("position_miou", 11.5, "%", 60), *shuffled)
    figure, _, right, _ = drawn([replace(probe, measures=more)])
    grey = [line for line in right.lines if line.get_color() == base.GREY]
    assert any(set(line.get_ydata()) == {11.5} for line in grey)
    assert any(list(line.get_ydata()) == [5.0, 6, 7, 8, 9, 10, 11, 12] for line in grey)
    said = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert {name for name, _ in layers.CONTROLS.values()} <= said
    plain, *_ = drawn([probe])
    assert not {name for name, _ in layers.CONTROLS.values()} & {
        text.get_text() for legend in plain.legends for text in legend.get_texts()
    }


def test_a_picture_of_a_part_of_a_data_set_says_so(probes):
    part = replace(probes[0], about=probes[0].about | {"partial": {"val": {"images": 60, "published": 2000}}})
    assert "part of the data set" in base.about(part)
    assert "part of the data set" not in base.about(probes[0])
