"""Names of images in lists and folders: read as the data sets write them, never as paths."""

from pathlib import Path

import native_trees as trees
import pytest

from segbench.data import listing
from segbench.errors import DataError, MissingInput


def names_in(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "list.txt").write_text(text)
    return listing.read(tmp_path / "list.txt")


def test_lists_hold_names_or_pairs_of_paths(tmp_path):
    assert names_in(tmp_path, "2007_000032\n\n2007_000039 \n") == ["2007_000032", "2007_000039"]
    assert names_in(tmp_path, "/JPEGImages/a_1.jpg /SegmentationClassAug/a_1.png\r\n") == ["a_1"]
    assert names_in(tmp_path, "/SegNet/CamVid/train/b.png /SegNet/CamVid/trainannot/b.png\n") == ["b"]


@pytest.mark.parametrize(
    "line", ["..", "../x/..", "a/b.jpg c/d.png", ".hidden", "a\\..\\b", "-x", "<b>", "a.jpg a.png x"]
)
def test_list_of_strange_names_is_refused(tmp_path, line):
    with pytest.raises(DataError, match=r"list\.txt: .* is no name of an image"):
        names_in(tmp_path, f"fine\n{line}\n")


def test_list_that_is_absent_no_text_or_repeats_itself_is_told(tmp_path):
    with pytest.raises(MissingInput, match="there is no such list"):
        listing.read(tmp_path / "absent.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        listing.read(tmp_path / "list.txt")
    with pytest.raises(DataError, match="lists an image twice"):
        names_in(tmp_path, "a\nb\na\n")


def test_listed_picture_without_mask_is_missing_and_listed_name_without_both_is_left_out(tmp_path):
    trees.camvid(tmp_path)
    images, masks = tmp_path / "val", tmp_path / "valannot"
    wanted = listing.read(tmp_path / "val.txt")
    assert [pair.name for pair in listing.of([*wanted, "absent"], images, masks, ".png")] == wanted
    (masks / f"{wanted[1]}.png").unlink()
    with pytest.raises(MissingInput, match=rf"valannot: {wanted[1]} and 0 more are not there, but in .*val$"):
        listing.of(wanted, images, masks, ".png")
