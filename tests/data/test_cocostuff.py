"""COCO-Stuff: 182 ids, of which 11 were never drawn; counted as 171 classes, or kept."""

from pathlib import Path
from typing import Any

import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import cocostuff
from segbench.errors import DataError
from segbench.specs import Split
from segbench.types import Dataset

# The classes of COCO's 91 things that were never drawn (README of nightrome/cocostuff), and their ids there.
UNDRAWN = {"street sign": 12, "hat": 26, "shoe": 29, "eye glasses": 30, "plate": 45, "mirror": 66, "window": 68}
UNDRAWN |= {"desk": 69, "door": 71, "blender": 83, "hair brush": 91}


def loaded(root: Path, split: Split = "val", **params: Any) -> Dataset:
    return cocostuff.load(cocostuff.Params(path=root, partial=True, **params), split)


def test_the_eleven_are_those_that_coco_never_drew():
    names = cocostuff.Params.known.facts["classes182"]
    assert {names[value]: value + 1 for value in cocostuff.UNUSED} == UNDRAWN
    assert [name for name in names if name not in UNDRAWN] == list(cocostuff.Params.known.classes)
    assert (len(names), len(cocostuff.Params.known.classes)) == (182, 171)


@pytest.mark.parametrize("split", ["train", "val"])
def test_171_classes_are_those_that_were_drawn_in_their_order(tmp_path, split):
    data = loaded(trees.cocostuff(tmp_path), split)
    assert len(data.classes) == 171
    assert data.manifest
    drawn = [value for value in range(182) if value + 1 not in UNDRAWN.values()]
    for index in range(len(data)):
        stored = np.array(Image.open(tmp_path / "stuffthingmaps" / f"{split}2017" / f"{data[index].name}.png"))
        wanted = [[255 if value == 255 else drawn.index(value) for value in row] for row in stored.tolist()]
        np.testing.assert_array_equal(data[index].mask, wanted)


def test_182_classes_are_as_stored_and_another_data_set(tmp_path):
    root = trees.cocostuff(tmp_path)
    data = loaded(root, classes=182)
    stored = np.array(Image.open(root / f"stuffthingmaps/val2017/{data[0].name}.png"))
    np.testing.assert_array_equal(data[0].mask, stored)
    assert len(data.classes) == 182
    assert data.classes[181] == "wood"
    assert data.manifest != loaded(root).manifest


@pytest.mark.parametrize(
    "layout", [{}, {"masks": "annotations"}, {"masks": "stuffthingmaps_trainval2017"}, {"images": "."}]
)
def test_usual_folders_say_the_same(tmp_path, layout):
    usual, root = trees.cocostuff(tmp_path / "a"), trees.cocostuff(tmp_path / "b", **layout)
    assert loaded(root).manifest == loaded(usual).manifest


def test_masks_that_others_made_from_them_lie_aside(tmp_path):
    root = trees.cocostuff(tmp_path, masks="annotations")
    before = loaded(root).manifest
    for path in list(root.glob("annotations/val2017/*.png")):
        trees.mask(path.with_name(f"{path.stem}_labelTrainIds.png"), trees.drawn((0, 11), 0))
    assert loaded(root).manifest == before


DRAWN = [value for value in range(182) if value + 1 not in UNDRAWN.values()]


@pytest.mark.parametrize("classes", [171, 182])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({value: one for one, value in enumerate(DRAWN)}, "published masks never hold these ids"),
        ({value: one for one, value in enumerate(DRAWN)} | {12: 10}, r"0 of 20 masks hold one of 171\.\.181, but"),
        ({value: value + 1 for value in range(182)} | {255: 0}, "published masks never hold these ids"),
        ({0: 255} | {value: value - 1 for value in range(1, 182)}, "published masks never hold these ids"),
        ({0: 255} | {value: value - 1 for value in range(1, 182)} | {12: 12}, "0 of 20 masks hold 0, but"),
        ({255: 92}, "0 of 20 masks hold 255, but"),
    ],
    ids=["reduced", "reduced, by its marks", "shifted up", "shifted down", "shifted down, by its marks", "filled"],
)
def test_treated_labels_are_refused_before_anything_is_measured(tmp_path, classes, changes, told):
    root = trees.cocostuff(tmp_path, val=20)
    assert loaded(root, classes=classes).manifest
    trees.treat(root.glob("stuffthingmaps/val2017/*.png"), trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root, classes=classes).manifest  # noqa: B018
