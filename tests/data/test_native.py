"""What published data sets share: complete or told so, untreated, disjoint, found where they lie, known by bytes."""

import json
from pathlib import Path
from typing import Any

import native_trees as trees
import numpy as np
import pytest
from pydantic import ValidationError

from segbench import registry
from segbench.data import ade20k, camvid, listing, native
from segbench.data.facts import Published
from segbench.errors import DataError, MissingInput, SpecError
from segbench.images import File, Labels
from segbench.specs import Split, TaskSpec, read_task, validate
from segbench.strict_yaml import load
from segbench.types import IGNORE

PUBLISHED = sorted(path.stem for path in (Path(native.__file__).parent / "published").glob("*.json"))


def found(root: Path, wanted: Split = "val", published: int = 2, **params: Any) -> native.Native:
    """The drawn ADE20K as if so many images had been published."""
    pairs: dict[Split, list[listing.Pair]] = {
        one: listing.beside(root / "images" / folder, root / "annotations" / folder)
        for one, folder in ade20k.FOLDERS.items()
    }
    return native.split(ade20k.Params(path=root, **params), ade20k.LABELS, pairs, wanted, published)


# ------------------------------------------------------------------------------------------------------ what is there


def test_complete_split_says_nothing_of_a_part(tmp_path):
    assert found(trees.ade20k(tmp_path)).published is None


def test_missing_images_are_counted_and_partial_is_offered(tmp_path):
    trees.ade20k(tmp_path)
    with pytest.raises(
        MissingInput, match=r"2 of 2,000 val images of ADE20K .*segbench data get ade20k, or set `partia"
    ):
        found(tmp_path, published=2000)
    partial = found(tmp_path, published=2000, partial=True)
    assert (len(partial), partial.published) == (2, 2000)


def test_nothing_there_is_told_without_offering_a_part_of_it(tmp_path):
    with pytest.raises(MissingInput, match=r"0 of 2,000 val images .*first: segbench data get ade20k$"):
        found(tmp_path / "absent", published=2000, partial=True)


def test_more_images_than_published_are_refused_even_in_part(tmp_path):
    with pytest.raises(DataError, match=r"3 val images, but ADE20K scene parsing has 2; take out"):
        found(trees.ade20k(tmp_path, val=3), partial=True)


def test_image_without_mask_and_mask_without_image_are_named(tmp_path):
    trees.ade20k(tmp_path)
    lone = tmp_path / "annotations/validation/ADE_val_00000002.png"
    lone.rename(lone.with_name("ADE_val_00000077.png"))
    with pytest.raises(MissingInput, match=r"2 files have no partner, the first is ADE_val_00000002, which is not in"):
        found(tmp_path, partial=True)


def test_image_in_both_splits_is_refused(tmp_path):
    trees.ade20k(tmp_path)
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        stray = tmp_path / kind / "training" / f"ADE_train_00000003{suffix}"
        (tmp_path / kind / "validation" / stray.name).write_bytes(stray.read_bytes())
    with pytest.raises(DataError, match="ADE_train_00000003 and 0 more are in train and in val"):
        found(tmp_path, published=3)


def test_hidden_files_and_other_suffixes_are_no_images(tmp_path):
    trees.ade20k(tmp_path)
    for name in ("._ADE_val_00000001.jpg", "Thumbs.db"):
        (tmp_path / "images/validation" / name).write_bytes(b"x")
    assert len(found(tmp_path)) == 2


def test_order_is_that_of_names_whatever_the_disk_says(tmp_path):
    names = [pair.name for pair in found(trees.ade20k(tmp_path, val=9), published=9).pairs]
    assert names == sorted(names)
    assert len(names) == 9


# ------------------------------------------------------------------------------------------------------------ manifest


def test_manifest_depends_on_bytes_and_names_and_on_nothing_else(tmp_path):
    one, other = trees.ade20k(tmp_path / "a"), trees.ade20k(tmp_path / "b")
    assert found(one).manifest == found(other).manifest != found(one, "train", 3).manifest
    trees.mask(other / "annotations/validation/ADE_val_00000002.png", trees.drawn((0, 7), 1))
    assert found(one).manifest != found(other).manifest
    again = trees.ade20k(tmp_path / "c")
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        path = again / kind / "validation" / f"ADE_val_00000002{suffix}"
        path.rename(path.with_name(f"ADE_val_00000003{suffix}"))
    assert found(one).manifest != found(again).manifest


def test_few_masks_are_looked_at_from_all_over():
    few = native.evenly(range(1000))
    assert len(few) <= native.LOOKED_AT
    assert few[0] == 0
    assert few[-1] > 900
    assert list(native.evenly(range(5))) == [0, 1, 2, 3, 4]
    assert not native.evenly([])


def test_mark_that_too_few_masks_hold_is_told_with_both_numbers(tmp_path):
    trees.ade20k(tmp_path, val=10)
    trees.treat(sorted((tmp_path / "annotations/validation").glob("*.png"))[:6], trees.to({0: 1}))
    with pytest.raises(
        DataError, match=r"4 of 10 masks hold 0, but of ADE20K scene parsing as published at least 50% do"
    ):
        found(tmp_path, published=10).manifest  # noqa: B018
    trees.treat(sorted((tmp_path / "annotations/validation").glob("*.png"))[:1], lambda values: values * 0)
    assert found(tmp_path, published=10).manifest


# --------------------------------------------------------------------------------------------------- where, and which


def task(tmp_path: Path, keys: dict[str, Any], data: Path | None = None) -> TaskSpec:
    path = tmp_path / "t.yaml"
    path.write_text(json.dumps({"kind": "probe", "data": keys}))
    return read_task(load(path), path, data)


@pytest.mark.parametrize("below", ["ade20k/ADEChallengeData2016", "ade20k", "ADEChallengeData2016"])
def test_without_a_path_it_is_found_in_the_data_folder(tmp_path, below):
    trees.ade20k(tmp_path / below)
    (data,) = task(tmp_path, {"name": "ade20k", "partial": True}, data=tmp_path).data()
    assert len(data.load("val")) == 2


def test_path_is_meant_from_the_folder_of_the_file(tmp_path):
    (data,) = task(tmp_path, {"name": "ade20k", "path": "x"}, data=Path("/no")).data()
    assert data.params.model_dump()["path"] == tmp_path / "x"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"hub": "a/b"}, "hub: no copy 'a/b' of ADE20K scene parsing; known: zhoubolei/scene_parse_150"),
        ({"hub": "zhoubolei/scene_parse_15"}, "did you mean 'zhoubolei/scene_parse_150'"),
        ({"hub": "zhoubolei/scene_parse_150", "revision": "main"}, "expected a commit of 40 hexadecimal digits"),
        ({"hub": "sezer12138/ADE20k_Segementation"}, "'hub' needs the 'revision'"),
        ({"revision": "0" * 40}, "'revision' is a commit of the 'hub' copy, which is not given"),
        ({"hub": "zhoubolei/scene_parse_150", "path": "x"}, "'path' and 'hub' are both given; keep one"),
        ({"path": "x", "partail": True}, "unknown key 'partail', did you mean 'partial'?"),
    ],
)
def test_wrong_keys_are_told_before_anything_is_read(tmp_path, keys, told):
    with pytest.raises(SpecError) as error:
        task(tmp_path, {"name": "ade20k"} | keys)
    assert told in str(error.value)


# ------------------------------------------------------------------------------------------------- what was published


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_facts_fit_each_other_and_name_their_sources(name):
    known = Published.read(name)
    assert len(set(known.classes)) == len(known.classes)
    assert {"train", "val"} <= known.images.keys()
    assert known.archives or known.wanted
    for archive in known.archives:
        kind, digits = archive.hash.split(":")
        assert len(digits) == {"md5": 32, "sha1": 40, "sha256": 64}[kind]
        assert int(digits, 16)
        assert archive.source
    for split, told in known.facts["labels"].items():
        assert told["source"]
        assert told["tolerance"] >= 0
        assert told["slack"] >= 0
        assert len(told["images"]) == len(known.classes) == len(told["pixels"] or told["images"])
        assert all(one is None or one <= known.images[split] for one in told["images"])
    for copy in known.facts["hub"].values():
        assert copy.keys() >= {"revision", "files", "image", "mask", "name", "source"}
        assert copy["labels"] in ("raw", "reduced")
        assert copy["revision"] is None or len(copy["revision"]) == 40


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_set_of_published_facts_is_a_data_set_that_says_what_is_missing(name, tmp_path):
    module = registry.module("data", name)
    params = validate(module.Params, {}, {"data": tmp_path})
    for split in ("train", "val"):
        with pytest.raises(MissingInput, match=f"0 of .*segbench data get {name}$"):
            module.load(params, split)


def test_labels_of_the_whole_of_cityscapes_and_camvid_add_up_to_their_pixels():
    cityscapes, small = Published.read("cityscapes"), Published.read("camvid")
    void = 715_747_311  # facts of cityscapes_pix_label_stats.txt: pixels of void in train
    assert sum(cityscapes.facts["labels"]["train"]["pixels"]) + void == 2975 * 1024 * 2048
    assert sum(small.facts["labels"]["train"]["pixels"]) + 2_503_995 == 367 * 480 * 360


def test_bad_commit_is_refused_by_the_type_as_well():
    with pytest.raises(ValidationError, match="40 hexadecimal digits"):
        camvid.Params(path=Path("x"), revision="abc")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_class_is_what_some_value_means(name):
    found = vars(registry.module("data", name)).values()
    tables = [one for value in found for one in (value.values() if isinstance(value, dict) else [value])]
    for labels in [one for one in tables if isinstance(one, Labels)]:
        undrawn = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90} if labels.classes == 182 else set()  # of COCO
        assert set(labels.meaning.values()) == set(range(labels.classes)) - undrawn | {IGNORE}


def test_looking_at_masks_reads_them_as_they_are_stored(tmp_path):
    trees.mask(tmp_path / "m.png", np.array([[0, 1]], np.uint8), palette=True)
    masks = [File.of(tmp_path / "m.png")]
    native.refuse_treated(Published.read("ade20k"), ade20k.LABELS, masks, "here")
