"""Anybody's folder is read as it stands, and whatever cannot be trusted stops the reading with its name."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from torch import from_numpy
from torchmetrics.classification import MulticlassJaccardIndex

from segbench import stats
from segbench.data import folder
from segbench.errors import DataError, MissingInput, SpecError
from segbench.metrics import confusion
from segbench.specs import read_task
from segbench.strict_yaml import load
from segbench.types import IGNORE

CLASSES = ("sky", "grass", "road", "tree")
SIZES = {"a": (5, 7), "b.2": (8, 4), "Straße 1": (6, 6)}  # any size, dots, blanks and letters
SPLITS = {"train": ["a", "b.2"], "val": ["Straße 1"]}
SUFFIXES = {"a": ".png", "b.2": ".jpg", "Straße 1": ".JPEG"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three drawn images, one kept as a palette mask."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name, size in SIZES.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(
            tmp_path / "images" / f"{name}{SUFFIXES[name]}"
        )
        mask = Image.fromarray(random.choice([0, 1, 2, 3, IGNORE], size).astype(np.uint8))
        if name == "a":
            mask = Image.frombytes("P", mask.size, mask.tobytes())
            mask.putpalette(bytes(random.integers(0, 256, 768, np.uint8)))
        mask.save(tmp_path / "masks" / f"{name}.png")
    told(tmp_path, "classes", list(CLASSES))
    told(tmp_path, "splits", SPLITS)
    return tmp_path


def told(data: Path, name: str, content: Any) -> None:
    (data / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def loaded(data: Path, split: Literal["train", "val"] = "train", **params: Any) -> folder.Dataset:
    return folder.load(folder.Params(path=data, **params), split)


def test_samples_come_in_the_order_of_the_split_with_nothing_resized(data):
    train, val = loaded(data), loaded(data, "val")
    assert [train[index].name for index in range(len(train))] == SPLITS["train"]
    assert [val[index].name for index in range(len(val))] == SPLITS["val"]
    assert train.classes == CLASSES
    for sample in (train[0], train[1], val[0]):
        assert sample.mask.shape == SIZES[sample.name]
        assert sample.image.size == SIZES[sample.name][::-1]
        np.testing.assert_array_equal(sample.mask, np.array(Image.open(data / "masks" / f"{sample.name}.png")))


def test_masks_are_read_as_an_independent_count_of_their_pixels_says(data):
    """Integer counts of a drawn prediction against torchmetrics, over a whole split."""
    random, dataset = np.random.default_rng(1), loaded(data)
    jaccard = MulticlassJaccardIndex(len(CLASSES), average="macro", ignore_index=IGNORE, validate_args=True)
    total = np.zeros((len(CLASSES), 3), np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]
        raw = np.array(Image.open(data / "masks" / f"{sample.name}.png"))
        prediction = np.where(random.random(raw.shape) < 0.6, raw, 0).clip(0, 3).astype(np.uint8)
        total += confusion.counts(prediction, sample.mask, len(CLASSES))
        jaccard.update(from_numpy(prediction), from_numpy(raw))
    np.testing.assert_array_equal(total[:, 0], jaccard.confmat.diagonal())
    np.testing.assert_array_equal(total[:, 1], jaccard.confmat.sum(1))
    np.testing.assert_array_equal(total[:, 2], jaccard.confmat.sum(0))
    assert stats.miou(total) == pytest.approx(100 * jaccard.compute().item(), abs=1e-4)


def test_classes_may_stand_in_a_mapping_that_agrees_with_them(data):
    told(data, "classes", {"name": "mine", "num_classes": 4, "ignore_index": 255, "classes": list(CLASSES)})
    assert loaded(data).classes == CLASSES


def test_other_splits_can_be_named(data):
    told(data, "splits", {"fit": ["a"], "test": ["b.2"], "val": ["a"]})
    assert loaded(data, "train", train="fit", val="test")[0].name == "a"
    assert loaded(data, "val", train="fit", val="test")[0].name == "b.2"


def test_path_is_meant_from_the_folder_of_the_task_file(data, tmp_path):
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks" / "mine.yaml"
    path.write_text("kind: probe\ndata: {name: folder, path: ..}\n")
    (spec,) = read_task(load(path), path).data()
    assert spec.load("val")[0].name == "Straße 1"


def test_misspelt_key_of_the_data_is_told_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("kind: probe\ndata:\n  name: folder\n  pat: ..\n")
    with pytest.raises(SpecError, match=r"mine\.yaml:4: data: unknown key 'pat', did you mean 'path'"):
        read_task(load(path), path)
    with pytest.raises(ValidationError):
        folder.Params.model_validate({})


# --------------------------------------------------------------------------------------------------------- manifests


def test_manifest_is_that_of_the_contents_wherever_they_lie(data, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(data, elsewhere)
    assert loaded(data).manifest == loaded(elsewhere).manifest
    told(elsewhere, "splits", {"val": SPLITS["val"], "train": SPLITS["train"], "test": ["a"]})
    assert loaded(data).manifest == loaded(elsewhere).manifest


@pytest.mark.parametrize("change", ["image", "mask", "class", "order", "fewer"])
def test_whatever_changes_a_sample_changes_the_manifest(data, change):
    before = loaded(data).manifest
    if change == "image":
        Image.new("RGB", (7, 5)).save(data / "images" / "a.png")
    elif change == "mask":
        Image.new("L", (7, 5)).save(data / "masks" / "a.png")
    elif change == "class":
        told(data, "classes", ["sky", "grass", "road", "palm"])
    else:
        told(data, "splits", {"train": {"order": ["b.2", "a"], "fewer": ["a"]}[change], "val": ["Straße 1"]})
    assert loaded(data).manifest != before


# ---------------------------------------------------------------------------------------------- what is missing or bad


@pytest.mark.parametrize("gone", ["", "images", "masks", "classes.json", "splits.json"])
def test_missing_part_is_told_with_the_layout(data, gone):
    path = data / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MissingInput, match=r"there is no such (file|folder); expected .*masks/NAME\.png") as caught:
        loaded(data)
    assert str(path) in str(caught.value)


def test_all_files_that_are_not_there_are_told_at_once(data):
    (data / "images" / "b.2.jpg").unlink()
    (data / "masks" / "a.png").unlink()
    with pytest.raises(MissingInput, match=r"'images/b\.2', 'masks/a\.png' is listed in splits\.json but not there"):
        loaded(data)
    assert len(loaded(data, "val")) == 1


def test_image_that_is_there_twice_is_refused(data):
    shutil.copy(data / "images" / "a.png", data / "images" / "a.jpg")
    with pytest.raises(DataError, match=r"images: 'a' is there more than once, with different suffixes"):
        loaded(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected 1 to 255 class names"),
        ({"names": ["a"]}, "expected 1 to 255 class names"),
        (["a", 1], "expected 1 to 255 class names"),
        (["a", " "], "expected 1 to 255 class names"),
        ([f"c{number}" for number in range(256)], "expected 1 to 255 class names"),
        (["a", "b", "a"], "the class 'a' is listed more than once"),
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes is 3; expected 2"),
        ({"classes": ["a", "b"], "ignore_index": 0}, "ignore_index is 0; expected 255"),
    ],
)
def test_mistake_in_the_classes_names_their_file(data, content, said):
    told(data, "classes", content)
    with pytest.raises(DataError, match=rf"classes\.json: {said}"):
        loaded(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (["a"], 'expected {"train"'),
        ({"train": "a", "val": []}, 'expected {"train"'),
        ({"train": [1], "val": ["a"]}, 'expected {"train"'),
        ({"train": [], "val": ["a"]}, "the split 'train' is empty"),
        ({"train": ["a", "a"], "val": []}, "'a' is listed more than once in 'train'"),
        ({"train": ["a", "b.2"], "val": ["a"]}, "'a' is in 'train' and in 'val', so the probe would be tested on what"),
    ],
)
def test_mistake_in_the_splits_names_their_file(data, content, said):
    told(data, "splits", content)
    with pytest.raises(DataError, match=rf"splits\.json: {said}"):
        loaded(data)


def test_split_that_is_not_there_is_missing_and_the_others_are_told(data):
    told(data, "splits", {"train": ["a"], "test": ["b.2"]})
    with pytest.raises(MissingInput, match=r"no split 'val', only 'test', 'train'; .*`val: NAME`"):
        loaded(data, "val")


def test_one_split_under_both_names_is_refused(data):
    with pytest.raises(DataError, match="is in 'train' and in 'train'"):
        loaded(data, "val", val="train")


@pytest.mark.parametrize(
    "name",
    ["../a", "..", "/etc/passwd", "images/a", "a\\b", "C:a", ".hidden", "a\nb", "a\x1b[31m", "a\u202egnp", "~/a/b"],
)
def test_name_that_leaves_its_folder_or_hides_is_refused(data, name):
    told(data, "splits", {"train": [name], "val": ["a"]})
    with pytest.raises(DataError, match=r"splits\.json: .* in 'train' is no plain file name") as caught:
        loaded(data)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe\xff", "is no JSON"),
        (b'{"train": ["a"], "train": ["b.2"], "val": []}', "the key 'train' stands there more than once"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
def test_file_that_is_no_sound_json_is_named(data, text, said):
    (data / "splits.json").write_bytes(text)
    with pytest.raises(DataError, match=rf"splits\.json: {said}"):
        loaded(data)


def test_bad_file_stops_the_reading_with_its_name_and_the_others_are_read(data):
    mask = data / "masks" / "b.2.png"
    mask.write_bytes(mask.read_bytes()[:-20])
    dataset = loaded(data)
    assert dataset[0].name == "a"
    with pytest.raises(DataError, match=r"b\.2\.png: truncated or damaged"):
        dataset[1]


def test_mask_in_numbers_from_one_is_refused_where_the_last_class_is_none(data):
    """Labels shifted by one: the usual mistake with data sets whose 0 means unlabelled."""
    path = data / "masks" / "b.2.png"
    mask = np.array(Image.open(path))
    Image.fromarray(np.where(mask == IGNORE, 0, mask + 1).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match=r"the mask holds 4 \(\d+ px\); expected 0\.\.3 and 255"):
        loaded(data)[1]
