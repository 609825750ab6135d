import json
import shutil

import native_trees
import numpy as np
import pytest
import small_sets
from PIL import Image

from segbench.data import ade20k, checksums, there, verify
from segbench.errors import MissingInput, SpecError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/segbench"


@pytest.fixture
def root(tmp_path, monkeypatch):
    return small_sets.publish(monkeypatch, tmp_path / "ade")


def verified(root, partial=False, told=None):
    return verify.verify("ade20k", root.parent, root, partial, lambda *step: told is not None and told.append(step))


def seen(root):
    return there.there("ade20k", root.parent, root)


def test_a_whole_set_passes_and_its_counts_are_the_files(root):
    told = []
    report = verified(root, told=told)
    assert report.problems == ()
    for split, one in report.splits.items():
        expected = small_sets.statistics(root / "annotations" / small_sets.FOLDERS[split])
        assert one.images_with.tolist() == expected["images"]
        assert one.pixels.tolist() == expected["pixels"]
        values = np.stack([np.array(Image.open(path)) for path in small_sets.masks(root, split)])
        assert one.ignored == (values == 0).sum()
        assert one.compared == "labels compared: images and pixels of every class within 0.0% of the tests"
        assert one.manifest == ade20k.load(ade20k.Params(path=root), split).manifest
    assert len(report.files) == 2 * sum(small_sets.IMAGES.values())
    assert told[-1] == ("verifying ade20k val", 4, 4)


def test_a_verified_set_is_not_read_again_for_a_run(root, monkeypatch):
    verified(root)
    monkeypatch.setattr(checksums, "sha256", None)  # whoever reads a file now fails
    assert ade20k.load(ade20k.Params(path=root), "train").manifest


def test_the_digest_depends_on_the_files_and_on_nothing_else(root, tmp_path):
    first = verified(root).digest
    assert verified(root).digest == first
    copy = shutil.copytree(root, tmp_path / "elsewhere/ADEChallengeData2016")
    assert verified(copy).digest == first
    path = small_sets.images(copy)[0]
    native_trees.picture(path, 99)
    changed = verified(copy)
    assert changed.problems == ()
    assert changed.digest != first


def test_the_manifest_is_kept_with_its_date_apart(root, cache):
    report = verified(root)
    (kept,) = (cache / "verified").iterdir()
    content = json.loads(kept.read_bytes())
    assert content["digest"] == report.digest
    assert "date" not in json.dumps(content["content"])
    assert seen(root).verified == content["made"]["date"]
    assert seen(root).state == "complete"


def damage(root):
    """One of everything that can be wrong with a file, and the names of those files."""
    images, masks = small_sets.images(root, "train"), small_sets.masks(root, "train")
    images[0].write_bytes(images[0].read_bytes()[:-200])
    images[1].write_bytes(b"<html>not found</html>")
    masks[2].write_bytes(b"")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(masks[3])
    Image.fromarray(np.zeros(native_trees.SIZE, np.uint16)).save(masks[4])
    native_trees.treat([masks[5]], lambda values: np.where(values == 0, 255, values).astype(np.uint8))
    other = small_sets.images(root, "val")[0]
    other.write_bytes(b"")
    return [*images[:2], *masks[2:6], other]


def test_all_damaged_files_of_both_splits_are_told_at_once(root):
    wrong = damage(root)
    report = verified(root)
    for path in wrong:
        assert len([one for one in report.problems if str(path) in one]) == 1, path
    assert len(report.problems) == len(wrong)
    assert report.splits["train"].compared == "labels not compared: not all of them are there and readable"
    assert report.splits["val"].compared.startswith("labels compared")  # its masks are sound
    assert [one.manifest for one in report.splits.values()] == [None, None]


def test_a_broken_picture_with_a_broken_mask_is_two_problems(root):
    image, mask = small_sets.images(root)[0], small_sets.masks(root)[0]
    image.write_bytes(b"")
    mask.write_bytes(b"")
    of_image, of_mask = verified(root).problems
    assert str(image) in of_image
    assert str(mask) in of_mask


def test_labels_shifted_by_one_class_are_found_though_every_file_is_sound(root):
    every = [*small_sets.masks(root, "train"), *small_sets.masks(root)]
    native_trees.treat(every, native_trees.to({1: 2, 2: 3, 150: 1}))
    report = verified(root)
    assert len(report.problems) == 4  # images and pixels of both splits
    assert all("shifted by +1" in one for one in report.problems)
    assert report.splits["train"].manifest is None


def test_two_exchanged_classes_are_found(root):
    native_trees.treat(small_sets.masks(root), native_trees.to({2: 9, 9: 2}))
    assert any("of 150 classes do not have the pixels" in one for one in verified(root).problems)


def test_filled_labels_are_told(root):
    every = [*small_sets.masks(root, "train"), *small_sets.masks(root)]
    native_trees.treat(every, native_trees.to({0: 1}))
    assert any("shifted or filled already" in one for one in verified(root).problems)


def test_missing_images_are_a_problem_unless_a_part_is_wanted(root):
    for path in (small_sets.images(root)[0], small_sets.masks(root)[0]):
        path.unlink()
    (said,) = verified(root).problems
    assert said.endswith("3 of 4 val images are there")
    report = verified(root, partial=True)
    assert report.problems == ()
    assert report.splits["val"].compared.startswith("labels not compared")
    assert seen(root).state == "partial: 6 of 6 train, 3 of 4 val"


def test_a_mask_without_its_image_and_an_image_too_many_are_problems(root):
    small_sets.images(root)[0].unlink()
    assert any("no partner" in one for one in verified(root).problems)
    assert seen(root).state == "not usable"
    native_trees.ade20k(root, 6, 5)
    (said,) = verified(root).problems
    assert "5 val images, but ADE20K scene parsing has 4" in said


def test_a_problem_takes_an_earlier_manifest_back(root):
    verified(root)
    small_sets.images(root)[0].write_bytes(b"")
    verified(root)
    assert seen(root).verified is None


def test_a_file_that_changed_since_is_told_of_without_reading_it(root):
    verified(root)
    native_trees.picture(small_sets.images(root)[0], 7)
    assert seen(root).changed == 1
    assert seen(root).verified is not None


def test_bytes_that_changed_under_the_same_size_and_times_are_found_every_time(root, cache):
    verified(root)
    (kept,) = (cache / "checksums").iterdir()
    content = json.loads(kept.read_bytes())
    rotten = small_sets.images(root)[0]
    entry = content["files"][str(rotten.relative_to(root))]
    content["files"][str(rotten.relative_to(root))] = entry[:-64] + "0" * 64  # as if it had had other bytes then
    kept.write_text(json.dumps(content))
    for _ in range(2):
        (said,) = verified(root).problems
        assert said.startswith(f"{rotten}: its bytes changed, but neither its size nor its times")
    assert seen(root).verified is None


def test_files_of_this_moment_are_read_until_a_change_would_show(root, monkeypatch):
    monkeypatch.setattr(checksums, "FRESH", 0.3)
    native_trees.picture(small_sets.images(root)[0], 7)
    assert verified(root).problems == ()
    assert seen(root).changed == 0


def test_a_home_that_cannot_be_written_costs_only_what_is_remembered(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verified(root).problems == ()
    assert seen(root).verified is None


def test_nothing_there_says_how_to_get_it(tmp_path):
    with pytest.raises(MissingInput, match="segbench data get ade20k"):
        verify.verify("ade20k", tmp_path, None, False, lambda *_: None)


@pytest.mark.parametrize(("name", "words"), [("ade", "did you mean 'ade20k'"), ("folder", "no published data set")])
def test_other_names_are_refused(tmp_path, name, words):
    with pytest.raises(SpecError, match=words):
        there.there(name, tmp_path)
