"""CamVid as SegNet has it: 11 is void, in lists or folders; papers report what it calls test."""

from pathlib import Path
from typing import Any

import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import camvid
from segbench.errors import DataError, MissingInput
from segbench.specs import Split
from segbench.types import Dataset


def loaded(root: Path, split: Split = "val", partial: bool = True, **params: Any) -> Dataset:
    return camvid.load(camvid.Params(path=root, partial=partial, **params), split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_void_is_ignored_and_classes_are_as_stored(tmp_path, split):
    data = loaded(trees.camvid(tmp_path), split)
    assert len(data.classes) == 11
    assert data.manifest
    for index in range(len(data)):
        stored = np.array(Image.open(tmp_path / f"{split}annot" / f"{data[index].name}.png"))
        np.testing.assert_array_equal(data[index].mask, np.where(stored == 11, 255, stored))


def test_lists_and_folders_say_the_same(tmp_path):
    listed, folders = trees.camvid(tmp_path / "a"), trees.camvid(tmp_path / "b", lists=False)
    assert loaded(listed).manifest == loaded(folders).manifest


def test_a_list_leaves_out_what_it_does_not_name(tmp_path):
    root = trees.camvid(tmp_path)
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text("\n".join(lines[1:]))
    assert len(loaded(root, "train")) == 3


def test_test_images_are_validated_on_when_asked_for(tmp_path):
    root = trees.camvid(tmp_path)
    data = loaded(root, val="test")
    assert (len(data), data.published, data[0].name) == (2, 233, "Seq05VD_f06690")
    assert loaded(root, "train", val="test").manifest == loaded(root, "train").manifest


def test_whole_published_split_is_complete_and_one_frame_less_is_not(tmp_path):
    root = trees.camvid(tmp_path, val=101)
    assert loaded(root, partial=False).published is None
    trees.camvid(tmp_path / "less", val=100)
    with pytest.raises(
        MissingInput, match=r"100 of 101 val images of CamVid .*segbench data get camvid, or set `partial"
    ):
        loaded(tmp_path / "less", partial=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({11: 255}, "void is 11 in the published files, so these labels were already treated"),
        ({0: 255} | {value: value - 1 for value in range(1, 12)}, "void is 11 in the published files"),
        ({11: 3}, r"0 of 50 masks hold 11, but of CamVid"),
        ({value: value + 1 for value in range(11)} | {11: 0}, r"masks hold 11, but of CamVid .* at least 90% do"),
    ],
    ids=["ignored", "shifted down", "filled", "shifted up"],
)
def test_treated_labels_are_refused_before_anything_is_measured(tmp_path, changes, told):
    root = trees.camvid(tmp_path, val=100)
    frames = sorted(root.glob("valannot/*.png"))
    trees.treat(frames[: len(frames) // 3], trees.to({10: 3}))  # a third without bicyclists
    assert loaded(root).manifest
    trees.treat(frames, trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root).manifest  # noqa: B018
