"""Copies on the hub are read from the local cache like files: bytes as stored, the same labels, the same refusals."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub.constants
import native_trees as trees
import numpy as np
import pytest
from PIL import Image

from segbench.data import ade20k, cocostuff
from segbench.errors import DataError, MissingInput
from segbench.specs import Split, validate
from segbench.types import Dataset

COPY = "zhoubolei/scene_parse_150"
COMMIT = "e660d866a1351c70bcf07925d2600b60bd6e3bc3"  # as published/ade20k.json says
FOLDERS = {"train": "scene_parsing/train", "val": "scene_parsing/validation"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and one of what `datasets` makes of it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    return tmp_path / "hub"


def stored(array: np.ndarray, format: str = "PNG", **how: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, format, **how)
    return file.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (*trees.SIZE, 3), np.uint8)
MASKS = [trees.drawn((0, 1, 2, 150), seed) for seed in range(5)]


def snapshot(cache: Path, commit: str = COMMIT) -> Path:
    return cache / f"datasets--{COPY.replace('/', '--')}" / "snapshots" / commit


def write(
    cache: Path,
    masks: Sequence[bytes],
    split: Split = "val",
    columns: Sequence[str] = ("image", "annotation"),
    commit: str = COMMIT,
    pictures: Sequence[bytes] | None = None,
    per_file: int = 3,
) -> None:
    """Parquet files as `Dataset.push_to_hub` writes them, in the layout of the hub's cache."""
    folder = snapshot(cache, commit) / FOLDERS[split]
    folder.mkdir(parents=True)
    pictures = pictures or [stored(PICTURE, "JPEG", quality=90) for _ in masks]
    for number, start in enumerate(range(0, len(masks), per_file)):
        some = slice(start, start + per_file)
        rows = {
            columns[0]: [{"bytes": one, "path": None} for one in pictures[some]],
            columns[1]: [{"bytes": one, "path": "m.png"} for one in masks[some]],
            "scene_category": list(range(len(masks[some]))),
        }
        features = datasets.Features(
            {columns[0]: datasets.Image(), columns[1]: datasets.Image(), "scene_category": datasets.Value("int64")}
        )
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{number:04d}.parquet")


def loaded(split: Split = "val", partial: bool = True, **params: Any) -> Dataset:
    return ade20k.load(validate(ade20k.Params, {"hub": COPY, "partial": partial} | params, {}), split)


def test_masks_are_the_bytes_that_were_stored_with_the_labels_of_the_set(cache):
    write(cache, [stored(mask) for mask in MASKS])
    data = loaded()
    assert (len(data), data.published, len(data.classes)) == (5, 2000, 150)
    for index, mask in enumerate(MASKS):  # over two files, in their order
        np.testing.assert_array_equal(data[index].mask, np.where(mask == 0, 255, mask.astype(int) - 1))
        np.testing.assert_array_equal(data[index].image, Image.open(BytesIO(stored(PICTURE, "JPEG", quality=90))))
    assert [data[index].name for index in (0, 4)] == ["val-000000", "val-000004"]


def test_palettes_are_read_by_their_indices_as_in_files(cache):
    image = Image.fromarray(MASKS[0])
    image.putpalette([(37 * index + 11) % 256 for index in range(768)])
    file = BytesIO()
    image.save(file, "PNG")
    write(cache, [file.getvalue()])
    np.testing.assert_array_equal(loaded()[0].mask, np.where(MASKS[0] == 0, 255, MASKS[0].astype(int) - 1))


def test_names_come_from_a_column_where_the_copy_has_one(cache, monkeypatch):
    monkeypatch.setitem(ade20k.Params.known.facts["hub"][COPY], "name", "scene_category")
    write(cache, [stored(mask) for mask in MASKS])
    assert [loaded()[index].name for index in range(5)] == ["0", "1", "2", "0", "1"]


def test_copy_whose_labels_were_reduced_is_not_reduced_again(cache, monkeypatch):
    monkeypatch.setitem(ade20k.Params.known.facts["hub"][COPY], "labels", "reduced")
    reduced = [np.where(mask == 0, 255, mask - 1).astype(np.uint8) for mask in MASKS]
    write(cache, [stored(mask) for mask in reduced])
    np.testing.assert_array_equal(loaded()[1].mask, reduced[1])


@pytest.mark.parametrize("classes", [171, 182])
def test_other_keys_of_a_set_hold_for_its_copies(cache, monkeypatch, classes):
    monkeypatch.setitem(cocostuff.Params.known.facts["hub"], COPY, ade20k.Params.known.facts["hub"][COPY])  # type: ignore[arg-type]
    mask = trees.drawn((0, 12, 181, 255), 0)
    write(cache, [stored(mask)])
    params = validate(cocostuff.Params, {"hub": COPY, "partial": True, "classes": classes}, {})
    data = cocostuff.load(params, "val")
    assert len(data.classes) == classes
    assert data.classes[data[0].mask[mask == 181][0]] == "wood"


def test_manifest_changes_with_commit_split_and_bytes_and_not_with_the_cache(cache, tmp_path, monkeypatch):
    masks = [stored(mask) for mask in MASKS]
    write(cache, masks)
    write(cache, masks, split="train")
    write(cache, masks, commit="1" * 40)
    write(cache, [*masks[:4], stored(trees.drawn((0, 7), 0))], commit="2" * 40)
    seen = {loaded().manifest, loaded("train").manifest, *(loaded(revision=one * 40).manifest for one in "12")}
    assert len(seen) == 4
    before = loaded().manifest
    changed = tmp_path / "changed"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(changed))
    write(changed, masks[::-1])  # under the same commit
    assert loaded().manifest != before
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    write(tmp_path / "elsewhere", masks)
    assert loaded().manifest == before


# ------------------------------------------------------------------------------------------------------------- refused


def test_copy_that_is_not_in_the_cache_names_the_command(cache):
    said = f"hf download --repo-type dataset {COPY} --revision {COMMIT} --include .scene_parsing/train/"
    with pytest.raises(MissingInput, match=f"is not in the Hugging Face cache; first: {said}"):
        loaded()
    write(cache, [stored(MASKS[0])], split="train")
    with pytest.raises(MissingInput, match=rf"no scene_parsing/validation/\*\.parquet is in the cache; first: {said}"):
        loaded()


def test_loading_script_is_not_run(cache):
    snapshot(cache).mkdir(parents=True)
    (snapshot(cache) / "scene_parse_150.py").write_text("raise SystemExit('ran')")
    with pytest.raises(MissingInput, match="only a loading script, which is not run; first: hf download"):
        loaded()


def test_other_row_counts_than_published_are_refused(cache, monkeypatch):
    write(cache, [stored(mask) for mask in MASKS])
    with pytest.raises(MissingInput, match=r"e660d86: 5 of 2,000 val images .*or set `partial: true`"):
        loaded(partial=False)
    monkeypatch.setitem(ade20k.Params.known.images, "val", 4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="5 val images, but ADE20K scene parsing has 4"):
        loaded()


def test_other_columns_are_refused_by_name(cache):
    write(cache, [stored(MASKS[0])], columns=("image", "label"))
    with pytest.raises(DataError, match="no column 'annotation', only image, label, scene_category"):
        loaded()


def test_column_that_holds_no_pictures_is_refused(cache):
    folder = snapshot(cache) / FOLDERS["val"]
    folder.mkdir(parents=True)
    datasets.Dataset.from_dict({"image": ["a"], "annotation": [1]}).to_parquet(folder / "0000.parquet")
    with pytest.raises(DataError, match=r"the column 'image' holds Value.*expected pictures as bytes"):
        loaded()


def test_columns_of_pictures_without_their_feature_are_read(cache):
    folder = snapshot(cache) / FOLDERS["val"]
    folder.mkdir(parents=True)
    rows = {
        "image": [{"bytes": stored(PICTURE), "path": "i"}],
        "annotation": [{"bytes": stored(MASKS[0]), "path": "m"}],
    }
    datasets.Dataset.from_dict(rows).to_parquet(folder / "0000.parquet")
    assert loaded().manifest
    assert loaded()[0].image.size == (trees.SIZE[1], trees.SIZE[0])


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (stored(MASKS[0], "JPEG"), "row 0 of val, annotation: is a JPEG, which changes class ids"),
        (stored(np.stack([MASKS[0]] * 3, -1)), "row 0 of val, annotation: the mask is 8-bit RGB"),
        (stored(np.where(MASKS[0] == 0, 255, MASKS[0] - 1).astype(np.uint8)), "these labels were already shifted"),
        (stored(np.ones(trees.SIZE, np.uint8)), "0 of 1 masks hold 0, but"),
        (b"", "row 0 of val, annotation: holds no bytes of a picture"),
    ],
    ids=["JPEG", "RGB", "reduced", "filled", "empty"],
)
def test_mask_that_cannot_be_trusted_is_refused_before_anything_is_measured(cache, mask, told):
    write(cache, [mask])
    with pytest.raises(DataError, match=told):
        loaded().manifest  # noqa: B018


def test_file_that_is_no_parquet_is_told(cache):
    folder = snapshot(cache) / FOLDERS["val"]
    folder.mkdir(parents=True)
    (folder / "0000.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"0000\.parquet: cannot be read as Parquet"):
        loaded()
