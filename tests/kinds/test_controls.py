"""The levels that a curve must be above: labels of other images, and places alone."""

import numpy as np
import pytest
import tiny_runs
import torch

from segbench import controls, features, probes, stats
from segbench.errors import CellError
from segbench.kernels import Target
from segbench.types import Dataset, GridMap, Sample, Site

SITE = Site("adapter")
CLASSES = ("left", "right", "noise")


class Halves(Dataset):
    """The left half of every image is one class, the right half another, whatever the picture shows."""

    classes, manifest = CLASSES, "halves"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError("a control that looks at the images")


class Known(features.FeatureSource):
    """Images whose features say their number and nothing else; of `size` patches."""

    def __init__(self, size: int, grids: tuple[tuple[int, int], ...] = ((4, 4),)) -> None:
        self.dataset, self.sites, self.micro_batch, self.grids = Halves(size), (SITE,), features.MicroBatch(3), grids

    def read(self, indices):
        for some in self.micro_batch.parts([*map(int, indices)]):
            tokens = [torch.full((16, 1), float(index)) for index in some]
            yield {SITE: torch.stack(tokens)}, [self.target(index) for index in some]

    def target(self, index: int) -> Target:
        mask = np.zeros((8, 8), np.uint8)
        mask[:, 4:] = 1
        mask[0, 0] = index % 3
        return Target.of(GridMap.squash(self.grids[index % len(self.grids)], (8, 8)), mask)


def read(source, indices):
    """(number that the features say, label of the first pixel) of each image."""
    found = []
    for states, targets in source.read(indices):
        first = states[source.sites[0]][:, 0, 0].tolist()
        found += [(int(one), int(target.labels[0, 0])) for one, target in zip(first, targets, strict=True)]
    return found


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_image_gets_the_labels_of_another_and_lends_its_own_once(count):
    source = controls.Shuffled(Known(count), seed=0)
    lent = [number for number, _ in read(source, range(count))]
    assert sorted(lent) == list(range(count))
    assert all(number != index for index, number in enumerate(lent))


def test_labels_stay_those_of_the_image_that_was_asked_for_in_any_order():
    source = controls.Shuffled(Known(10), seed=1)
    asked = [7, 2, 9, 0]
    pairs = dict(enumerate(read(source, range(10))))
    assert read(source, asked) == [pairs[index] for index in asked]
    assert [label for _, label in read(source, asked)] == [index % 3 for index in asked]


def test_another_seed_shuffles_in_another_way():
    first, same, other = (read(controls.Shuffled(Known(20), seed), range(20)) for seed in (0, 0, 1))
    assert first == same != other


def test_one_image_cannot_be_shuffled():
    with pytest.raises(CellError, match="one training image"):
        controls.Shuffled(Known(1), seed=0)


def test_images_with_other_grids_cannot_be_shuffled():
    with pytest.raises(CellError, match="squash"):
        read(controls.Shuffled(Known(4, ((4, 4), (2, 8))), seed=0), range(4))


def test_a_probe_of_places_learns_what_only_the_place_tells_and_never_sees_an_image():
    source = controls.Position(Known(6), (4, 4), torch.device("cpu"))
    bank = probes.ProbeBank({controls.PLACE: 16}, len(CLASSES))
    trainer = probes.Trainer(bank, source, range(6), probes.Schedule(40, 6, 0.1, (0.9, 0.999), 0.0, 0.9, 0))
    for epoch in range(40):
        trainer.epoch(epoch, lambda images: None)
    counts = probes.count(bank, source, range(6)).sum(1)
    assert stats.pixel_accuracy(counts)[0] > 95


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    text = tiny_runs.PROBE + "shuffled: true\nposition: true\nat_model: true\n"
    outcome = tiny_runs.measure(tiny_runs.lab(folder / "lab", {"probe": text}), "probe", folder / "out")["probe"]
    assert outcome.result, outcome.note
    return outcome.result


def test_controls_are_reported_beside_the_curve(result, cells):
    sites, arrays = result.about["sites"], result.arrays("counts")
    for metric, name, places in (
        ("shuffled_miou", "shuffled", sites),
        ("position_miou", "position", [None]),
        ("miou@model", "at_model", sites),
    ):
        found = {m.site: m.value for m in result.measures if m.metric == metric}
        assert list(found) == places
        assert list(found.values()) == pytest.approx(stats.miou(arrays[name].sum(1)).tolist())
        assert all(m.interval for m in result.measures if m.metric == metric)
    # beside it: the curve itself is what it is without them
    np.testing.assert_array_equal(arrays["best"], cells["probe"].arrays("counts")["best"])


def test_the_confusion_of_all_images_has_their_counts_as_margins(result):
    confusion, counts = result.arrays("confusion")["best"], result.arrays("counts")["best"].sum(1)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(np.diagonal(confusion, axis1=1, axis2=2), counts[..., 0])
    np.testing.assert_array_equal(confusion.sum(2), counts[..., 1])
    np.testing.assert_array_equal(confusion.sum(1), counts[..., 2])


def test_the_models_own_resolution_has_its_own_pixels(result):
    pixels = {name: array[0, :, :, 1].sum(1) for name, array in result.arrays("counts").items()}
    assert set(pixels["best"]) == {tiny_runs.SIZE[0] * tiny_runs.SIZE[1]}
    assert len(set(pixels["at_model"])) == 1
    assert set(pixels["at_model"]) != set(pixels["best"])
