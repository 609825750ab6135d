"""PASCAL VOC 2012: indices of a palette, 255 around objects, and an augmented set without what is validated."""

from pathlib import Path
from typing import Any

import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import voc2012
from segbench.errors import DataError, MissingInput
from segbench.specs import Split
from segbench.types import Dataset

LISTS = "VOCdevkit/VOC2012/ImageSets/Segmentation"


def loaded(root: Path, split: Split = "train", **params: Any) -> Dataset:
    return voc2012.load(voc2012.Params(path=root, partial=True, **params), split)


def names(data: Dataset) -> list[str]:
    return [data[index].name for index in range(len(data))]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_every_mask_holds_the_indices_of_its_palette_wherever_the_root_is(tmp_path, below):
    root = trees.voc2012(tmp_path)
    data = loaded(root / below, "val")
    assert len(data) == 3
    assert len(data.classes) == 21
    assert data.manifest
    for index in range(len(data)):
        sample = data[index]
        with Image.open(root / f"VOCdevkit/VOC2012/SegmentationClass/{sample.name}.png") as stored:
            assert stored.mode == "P"
            np.testing.assert_array_equal(sample.mask, np.array(stored))
        assert set(np.unique(sample.mask)) == {0, 1, 20, 255}


def test_foreground_is_a_subset_of_classes():
    assert voc2012.SUBSETS["fg20"] == tuple(range(1, 21))
    assert voc2012.Params.known.classes[0] == "background"
    assert voc2012.Params.known.classes[20] == "tvmonitor"


def test_splits_carry_the_subset(tmp_path):
    root = trees.voc2012(tmp_path)
    assert [dict(loaded(root, split).subsets) for split in ("train", "val")] == [voc2012.SUBSETS] * 2


# ----------------------------------------------------------------------------------------------------------- augmented


def test_augmented_set_is_ten_thousand_and_its_part_is_told(tmp_path):
    root = trees.voc2012(tmp_path)
    assert (len(loaded(root)), loaded(root).published) == (4, 1464)
    assert (len(loaded(root, train="aug")), loaded(root, train="aug").published) == (9, 10582)
    assert loaded(root, "val", train="aug").manifest == loaded(root, "val").manifest


def pairs_of_paths(path: Path) -> None:
    stems = path.read_text().split()
    path.write_text("".join(f"/JPEGImages/{one}.jpg /SegmentationClassAug/{one}.png\n" for one in stems))


def only_sbd(path: Path) -> None:
    own = (path.parent / "train.txt").read_text().split()
    more = [one for one in path.read_text().split() if one not in own]
    path.with_name("aug.txt").write_text("\n".join(reversed(more)))
    path.unlink()


@pytest.mark.parametrize(
    "lay_out",
    [lambda path: None, lambda path: path.rename(path.with_name("train_aug.txt")), pairs_of_paths, only_sbd],
    ids=["trainaug", "train_aug", "paths", "aug"],
)
def test_usual_lists_of_the_augmented_set_say_the_same(tmp_path, lay_out):
    one, other = trees.voc2012(tmp_path / "a"), trees.voc2012(tmp_path / "b")
    lay_out(other / LISTS / "trainaug.txt")
    assert loaded(other, train="aug").manifest == loaded(one, train="aug").manifest
    assert names(loaded(other, train="aug")) == sorted(names(loaded(one, train="aug")))


def test_images_of_voc_have_the_masks_of_voc_with_their_border(tmp_path):
    root = trees.voc2012(tmp_path)
    own = (root / LISTS / "train.txt").read_text().split()
    for name in own:  # as in the usual archive, which holds everything
        trees.mask(root / f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png", trees.drawn((0, 5), 0))
    data = loaded(root, train="aug")
    assert {255 in sample.mask for sample in map(data.__getitem__, range(9)) if sample.name in own} == {True}
    assert data.manifest  # masks of SBD have no border, and need none


def test_shifted_masks_of_sbd_are_refused_beside_untouched_ones_of_voc(tmp_path):
    root = trees.voc2012(tmp_path)
    masks = root.glob("VOCdevkit/VOC2012/SegmentationClassAug/*.png")
    trees.treat(masks, trees.to({0: 255} | {value: value - 1 for value in range(1, 21)}))
    with pytest.raises(DataError, match="0 of 5 masks hold 0, but of PASCAL VOC 2012"):
        loaded(root, train="aug").manifest  # noqa: B018
    assert loaded(root).manifest


def test_sbd_list_that_holds_what_is_validated_is_refused_for_both_splits(tmp_path):
    root = trees.voc2012(tmp_path)
    name = (root / LISTS / "val.txt").read_text().split()[0]
    with (root / LISTS / "trainaug.txt").open("a") as file:
        file.write(f"{name}\n")
    trees.mask(root / f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png", trees.drawn((0, 15), 0))
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"{name} and 0 more are in train and in val"):
            loaded(root, split, train="aug")
    assert len(loaded(root)) == 4


def test_without_its_list_the_augmented_set_is_missing_and_says_where_it_comes_from(tmp_path):
    root = trees.voc2012(tmp_path)
    (root / LISTS / "trainaug.txt").unlink()
    with pytest.raises(
        MissingInput, match=r"none of trainaug\.txt, train_aug\.txt, aug\.txt is there; .* come from SBD"
    ):
        loaded(root, train="aug")


# ------------------------------------------------------------------------------------------------------------- treated

PALETTE_AS_GREY = {1: 38, 20: 132}  # (128, 0, 0) and (0, 64, 128) as luminance


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({255: 0}, "0 of 3 masks hold 255, but of PASCAL VOC 2012"),
        ({0: 255} | {value: value - 1 for value in range(1, 21)}, "masks hold 0, but of PASCAL VOC 2012"),
        ({value: value + 1 for value in range(21)} | {255: 0}, r"the mask holds 21 \("),
        (PALETTE_AS_GREY, "the palette's indices are the classes, not its colours turned to grey"),
        ({255: 21}, r"the mask holds 21 \("),
    ],
    ids=["no border", "background ignored", "shifted up", "grey", "border as a class"],
)
def test_treated_labels_are_refused_before_anything_is_measured(tmp_path, changes, told):
    root = trees.voc2012(tmp_path)
    trees.treat(root.glob("VOCdevkit/VOC2012/SegmentationClass/*.png"), trees.to({1: 2}))  # no aeroplane, as is usual
    assert loaded(root, "val").manifest
    trees.treat(root.glob("VOCdevkit/VOC2012/SegmentationClass/*.png"), trees.to(changes))
    with pytest.raises(DataError, match=told):
        loaded(root, "val").manifest  # noqa: B018


def test_colours_instead_of_indices_are_refused(tmp_path):
    root = trees.voc2012(tmp_path)
    for path in root.glob("VOCdevkit/VOC2012/SegmentationClass/*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match="8-bit RGB; expected an 8-bit grey or a palette PNG"):
        loaded(root, "val").manifest  # noqa: B018
