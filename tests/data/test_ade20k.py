"""ADE20K: 0 is other, k is class k - 1, exactly once."""

from pathlib import Path

import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import ade20k
from segbench.errors import DataError
from segbench.specs import Split
from segbench.types import Dataset


def loaded(root: Path, split: Split = "val") -> Dataset:
    return ade20k.load(ade20k.Params(path=root, partial=True), split)


@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_labels_are_one_less_and_other_is_ignored(tmp_path, split, folder):
    data = loaded(trees.ade20k(tmp_path), split)
    assert len(data.classes) == 150
    assert data.clusters is None
    assert data.manifest
    for index in range(len(data)):
        sample = data[index]
        stored = np.array(Image.open(tmp_path / "annotations" / folder / f"{sample.name}.png")).astype(int)
        np.testing.assert_array_equal(sample.mask, np.where(stored == 0, 255, stored - 1))
        assert sample.image.size == (trees.SIZE[1], trees.SIZE[0])


def test_classes_are_in_the_official_order():
    names = ade20k.Params.known.classes
    assert [names[one] for one in (0, 2, 12, 149)] == ["wall", "sky", "person", "flag"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({0: 255} | {value: value - 1 for value in range(1, 151)}, r"already shifted \(reduce_zero_label\)"),
        ({0: 255}, r"255 \(.*already shifted"),
        ({value: value + 1 for value in range(151)}, r"the mask holds 151 "),
        ({0: 150}, "0 of 2 masks hold 0, but of ADE20K"),  # other became a class, somewhere
    ],
    ids=["reduced", "ignored", "shifted up", "filled"],
)
def test_treated_labels_are_refused_before_anything_is_measured(tmp_path, changes, told):
    root = trees.ade20k(tmp_path)
    assert loaded(root).manifest
    trees.treat(root.glob("annotations/validation/*.png"), trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root).manifest  # noqa: B018
