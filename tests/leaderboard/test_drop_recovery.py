"""Drop, recovery and peak against numbers worked out by hand and against a loop over resamples."""

import numpy as np
import pytest
from made_results import BIDIR, CAUSAL, keep, make

from segbench import stats
from segbench.errors import CellError
from segbench.leaderboard.drop_recovery import drop_recovery, gain
from segbench.types import Interval, Measure

SITES = ("encoder", "adapter", "llm.1", "llm.2", "llm.norm")


def probe(root, hits, sites=SITES, model=CAUSAL, images=None, measures=(), clusters=None):
    """A probe cell of two classes with 100 pixels each per image; `hits` [sites, images] of both, the rest confused."""
    hits = np.asarray(hits)
    counts = np.broadcast_to(100, (*hits.shape, 2, 3)).copy().astype(np.int32)
    counts[..., 0] = hits[..., None]
    names = images or [str(index) for index in range(hits.shape[1])]
    about = {"sites": list(sites), "classes": ["a", "b"], "images": names}
    about |= {"clusters": clusters} if clusters else {}
    return keep(root, model, "probe", {"counts": {"best": counts}}, about, measures)


def iou(hits):
    """In %, of a class with 100 pixels that is predicted 100 times."""
    return 100 * hits / (200 - hits)


def test_differences_of_hand_counts(tmp_path):
    hits = [[80, 80], [60, 60], [70, 70], [90, 90], [95, 95]]
    found = drop_recovery(probe(tmp_path, hits, measures=[Measure("oracle_miou", 97.0, "%", 2)]))
    assert found.curve["encoder"].value == pytest.approx(iou(80))
    assert found.drop.value == pytest.approx(iou(60) - iou(80))
    assert found.peak.value == pytest.approx(iou(90))
    assert found.peak_layer == 2
    assert found.recovery.value == pytest.approx(iou(90) - iou(60))
    assert found.delta_enc.value == pytest.approx(iou(90) - iou(80))
    assert found.recovery.interval.low == pytest.approx(found.recovery.interval.high)  # equal images leave no doubt
    assert found.oracle == 97.0


def test_the_first_of_equal_layers_is_the_peak(tmp_path):
    assert drop_recovery(probe(tmp_path, [[80, 80], [60, 60], [90, 90], [90, 90], [90, 90]])).peak_layer == 1


def test_keys_and_values_are_in_the_curve_and_never_the_peak(tmp_path):
    sites = ("encoder", "adapter", "llm.1", "llm.1.key", "llm.1.value", "llm.2")
    found = drop_recovery(probe(tmp_path, [[80, 80], [60, 60], [70, 70], [99, 99], [99, 99], [75, 75]], sites))
    assert found.peak_layer == 2
    assert found.peak.value == pytest.approx(iou(75))
    assert found.curve["llm.1.value"].value == pytest.approx(iou(99))


@pytest.mark.parametrize(
    ("sites", "missing", "there"),
    [
        (("adapter", "llm.1", "llm.2"), {"drop", "delta_enc"}, {"recovery", "peak"}),
        (("encoder", "llm.1", "llm.norm"), {"drop", "recovery"}, {"delta_enc", "peak"}),
        (("encoder", "adapter", "llm.norm"), {"recovery", "delta_enc", "peak", "peak_layer", "peak_layers"}, {"drop"}),
    ],
)
def test_what_was_not_probed_is_absent(tmp_path, sites, missing, there):
    found = drop_recovery(probe(tmp_path, [[80, 70], [60, 70], [90, 80]], sites))
    assert {name for name in missing | there if getattr(found, name) is None} == missing
    assert found.oracle is None


def test_the_peak_is_chosen_anew_without_each_image(tmp_path):
    """Layer 1 is better on even images and layer 2 on odd ones: each image that is left out hands the peak over."""
    hits = np.full((5, 20), 50)
    hits[2, ::2], hits[3, 1::2] = 90, 90
    result = probe(tmp_path, hits)
    found = drop_recovery(result)
    sites = stats.sampled(stats.miou, result.arrays("counts")["best"], stats.Units.among(20))
    assert found.peak != found.curve["llm.1"]
    assert found.peak == stats.Sampled(sites[2].value, np.maximum(sites[2].again, sites[3].again), 20).estimate()
    assert found.peak_layer == 1


def test_the_layers_of_the_peak_are_those_that_resamples_choose(tmp_path):
    hits = np.full((5, 60), 50)
    hits[2, ::2], hits[3, 1::2] = 90, 90
    assert drop_recovery(probe(tmp_path, hits)).peak_layers == Interval(1, 2)
    hits[3] = 95
    assert drop_recovery(probe(tmp_path / "clear", hits)).peak_layers == Interval(2, 2)
    assert drop_recovery(probe(tmp_path / "few", hits[:, :49])).peak_layers is None


def test_whole_cities_are_left_out(tmp_path):
    """The images of a city are alike: 60 of them in three cities are three, not 60."""
    hits = np.stack([np.repeat([80, 70, 50], 20), *[np.repeat([60, 55, 40], 20)] * 4])
    found = drop_recovery(probe(tmp_path, hits, clusters=np.repeat(["ulm", "bonn", "jena"], 20).tolist()))
    apart = drop_recovery(probe(tmp_path / "apart", hits))
    assert found.drop.value == apart.drop.value
    assert (found.drop.units, apart.drop.units) == (3, 60)
    assert found.drop.error > 4 * apart.drop.error
    assert found.peak_layers is None


def test_paired_intervals_are_narrower_than_unpaired_ones(tmp_path):
    """The images differ by far more than the sites do, as real ones do."""
    (result,) = make(tmp_path, [CAUSAL], ["probe"], images=40, examples=0)
    found = drop_recovery(result)
    widths = {name: one.interval.high - one.interval.low for name, one in found.curve.items()}
    unpaired = np.hypot(widths["encoder"], widths["adapter"])
    assert found.drop.interval.high - found.drop.interval.low < unpaired / 2


def test_gain_is_between_each_models_own_best_layers(tmp_path):
    causal = probe(tmp_path, [[80, 80], [60, 60], [70, 70], [60, 60], [50, 50]])
    bidir = probe(tmp_path, [[80, 80], [60, 60], [70, 70], [90, 90], [50, 50]], model=BIDIR)
    assert gain(bidir, causal).value == pytest.approx(iou(90) - iou(70))


def test_other_images_cannot_be_compared(tmp_path):
    hits = [[80, 80], [60, 60], [70, 70], [60, 60], [50, 50]]
    causal, bidir = probe(tmp_path, hits), probe(tmp_path, hits, model=BIDIR, images=["x", "y"])
    with pytest.raises(CellError, match="different images"):
        gain(bidir, causal)


def test_one_image_has_numbers_without_intervals(tmp_path):
    found = drop_recovery(probe(tmp_path, [[80], [60], [70], [90], [95]]))
    assert found.drop.value == pytest.approx(iou(60) - iou(80))
    assert found.drop.interval is None
    assert found.peak_layers is None
