"""Cityscapes: label ids and train ids say the same, are not taken for each other, and cities are clusters."""

import shutil
from pathlib import Path

import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import cityscapes
from segbench.errors import DataError, MissingInput
from segbench.specs import Split
from segbench.types import Dataset

# By name, as cityscapesScripts has them (helpers/labels.py there).
IDS = """
    unlabeled 0, ego vehicle 1, rectification border 2, out of roi 3, static 4, dynamic 5, ground 6, road 7, sidewalk 8,
    parking 9, rail track 10, building 11, wall 12, fence 13, guard rail 14, bridge 15, tunnel 16, pole 17,
    polegroup 18, traffic light 19, traffic sign 20, vegetation 21, terrain 22, sky 23, person 24, rider 25, car 26,
    truck 27, bus 28, caravan 29, trailer 30, train 31, motorcycle 32, bicycle 33
"""


def loaded(root: Path, split: Split = "train") -> Dataset:
    return cityscapes.load(cityscapes.Params(path=root, partial=True), split)


def test_label_table_is_the_official_one_by_names():
    names = cityscapes.Params.known.classes
    for entry in IDS.split(","):
        name, value = entry.strip().rsplit(" ", 1)
        assert cityscapes.OF_IDS.meaning[int(value)] == (names.index(name) if name in names else 255), name
    assert len(cityscapes.OF_IDS.meaning) == 34


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_mask_equals_a_reading_with_another_table(tmp_path, split):
    root = trees.cityscapes(tmp_path)
    data = loaded(root, split)
    assert len(data) == 3 * len(trees.CITIES[split])
    assert len(data.classes) == 19
    for index in range(len(data)):
        sample = data[index]
        path = root / "gtFine" / split / sample.name.split("_")[0] / f"{sample.name}_gtFine_labelIds.png"
        stored = np.array(Image.open(path))
        wanted = np.full_like(stored, 255)
        for value, train in ((7, 0), (8, 1), (21, 8), (26, 13), (33, 18)):
            wanted[stored == value] = train
        np.testing.assert_array_equal(sample.mask, wanted)


def test_label_ids_and_train_ids_say_the_same(tmp_path):
    of_ids, of_train_ids = loaded(trees.cityscapes(tmp_path / "a")), loaded(trees.cityscapes(tmp_path / "b", True))
    assert of_ids.manifest != of_train_ids.manifest  # other files
    for index in range(len(of_ids)):
        np.testing.assert_array_equal(of_ids[index].mask, of_train_ids[index].mask)


def test_train_ids_are_read_where_they_are_there(tmp_path):
    root = trees.cityscapes(tmp_path, train_ids=True)
    trees.treat(root.glob("gtFine/*/*/*_labelIds.png"), lambda values: values * 0)
    assert loaded(root).manifest
    assert set(np.unique(loaded(root)[0].mask)) == {0, 1, 8, 13, 18, 255}


def test_images_know_their_cities(tmp_path):
    root = trees.cityscapes(tmp_path)
    assert loaded(root).clusters == ("aachen",) * 3 + ("bremen",) * 3 + ("ulm",) * 3
    assert loaded(root, "val").clusters == ("frankfurt",) * 3 + ("munster",) * 3
    assert [loaded(root)[index].name.split("_")[0] for index in (0, 3, 8)] == ["aachen", "bremen", "ulm"]


def test_train_ids_of_some_images_only_are_refused_by_name(tmp_path):
    root = trees.cityscapes(tmp_path, train_ids=True)
    (root / "gtFine/val/munster/munster_000001_000019_gtFine_labelTrainIds.png").unlink()
    for split in ("train", "val"):  # both splits are read in one form
        with pytest.raises(DataError, match=r"munster_000001_000019_gtFine_labelTrainIds\.png: is not there"):
            loaded(root, split)


@pytest.mark.parametrize(("gone", "kept"), [("gtFine", "leftImg8bit"), ("leftImg8bit", "gtFine")])
def test_city_of_images_without_labels_or_of_labels_without_images_is_named(tmp_path, gone, kept):
    root = trees.cityscapes(tmp_path)
    shutil.rmtree(root / gone / "train" / "ulm")
    told = rf"{kept}/train/ulm: 3 files have no partner, the first is ulm_000000_000019, which is not in .*{gone}"
    with pytest.raises(MissingInput, match=told):
        loaded(root)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({0: 7, 1: 8, 8: 21, 13: 26, 18: 33, 255: 3}, "these are label ids under the name of train ids"),
        ({value: value + 1 for value in range(19)} | {255: 0}, r"19 \(.*label ids under the name"),
        ({0: 255} | {value: value - 1 for value in range(1, 19)}, "masks hold 18, but"),
        ({255: 0}, "0 of 9 masks hold 255, but"),
        ({0: 255}, "0 of 9 masks hold 0, but"),
    ],
    ids=["label ids", "shifted up", "shifted down", "filled", "road ignored"],
)
def test_treated_train_ids_are_refused(tmp_path, changes, told):
    root = trees.cityscapes(tmp_path, train_ids=True)
    assert loaded(root).manifest
    trees.treat(root.glob("gtFine/*/*/*_labelTrainIds.png"), trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root).manifest  # noqa: B018


TRAINED = {0: 255, 3: 255, 7: 0, 8: 1, 21: 8, 26: 13, 33: 18}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (TRAINED, "published label ids hold no 255, so these are train ids under the name of label ids"),
        (TRAINED | {0: 3, 3: 3}, "0 of 9 masks hold 21, but"),  # train ids without a 255
        ({0: 255, 3: 255}, "published label ids hold no 255"),
        ({0: 7, 3: 7}, r"0 of 9 masks hold one of 0\.\.30, but"),
        ({33: 34}, r"the mask holds 34 \("),
    ],
    ids=["train ids", "train ids, void as 3", "void ignored", "void filled", "shifted up"],
)
def test_treated_label_ids_are_refused(tmp_path, changes, told):
    root = trees.cityscapes(tmp_path)
    assert loaded(root).manifest
    trees.treat(root.glob("gtFine/*/*/*_labelIds.png"), trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root).manifest  # noqa: B018
