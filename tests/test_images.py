"""A corpus of sound and unsound files: each is read exactly or refused by name."""

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile, ImageOps

from segbench.errors import DataError, MissingInput
from segbench.images import Labels, read_image, read_mask, read_pair
from segbench.types import IGNORE

LABELS = np.array([[0, 1, 2, 3], [4, 5, 6, IGNORE], [0, 0, 7, 7]], np.uint8)
RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (3, 4, 3), np.uint8)


def png(labels: np.ndarray, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG written bit by bit, so that no encoder chooses its own depth; `labels` are samples per pixel."""
    rows = b""
    for row in labels.reshape(len(labels), -1):
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def saved(folder: Path, name: str, image: Image.Image, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(folder / name, exif=exif)
    return folder / name


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def voc_colours() -> bytes:
    """Colours whose grey values are far from their indices, as those of VOC are."""
    return bytes(RANDOM.permutation(256).astype(np.uint8).repeat(3))


# ------------------------------------------------------------------------------------------------------------- masks


def test_grey_mask_is_read_as_it_was_written(tmp_path):
    np.testing.assert_array_equal(read_mask(saved(tmp_path, "m.png", Image.fromarray(LABELS)), Labels.plain(8)), LABELS)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_mask_is_read_as_indices_and_not_as_colours(tmp_path, transparent):
    mask = Image.frombytes("P", (4, 3), LABELS.tobytes())
    mask.putpalette(voc_colours())
    mask.save(tmp_path / "m.png", **({"transparency": 0} if transparent else {}))
    assert not np.array_equal(np.array(Image.open(tmp_path / "m.png").convert("L")), LABELS)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", Labels.plain(8)), LABELS)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_palette_mask_of_few_bits_is_read_as_indices(tmp_path, depth):
    labels = np.arange(2**depth, dtype=np.uint8)[None].repeat(3, 0)
    palette = chunk(b"PLTE", voc_colours()[: 3 * 2**depth])
    path = written(tmp_path, "m.png", png(labels, depth, 3, palette))
    np.testing.assert_array_equal(read_mask(path, Labels.plain(16)), labels)


@pytest.mark.parametrize(
    ("samples", "depth", "colour", "name"),
    [
        (1, 1, 0, "1-bit grey"),
        (1, 2, 0, "2-bit grey"),
        (1, 4, 0, "4-bit grey"),
        (1, 16, 0, "16-bit grey"),
        (3, 8, 2, "8-bit RGB"),
        (3, 16, 2, "16-bit RGB"),
        (2, 8, 4, "8-bit grey with alpha"),
        (4, 8, 6, "8-bit RGBA"),
    ],
)
def test_mask_of_another_kind_is_refused_by_name(tmp_path, samples, depth, colour, name):
    data = png(np.ones((3, 4, samples), np.uint8), depth, colour)
    Image.open(BytesIO(data)).load()  # a sound file: only its kind is wrong
    with pytest.raises(DataError, match=rf"m\.png: the mask is {name}; expected an 8-bit grey or a palette PNG"):
        read_mask(written(tmp_path, "m.png", data), Labels.plain(150))


@pytest.mark.parametrize("samples", [1, 3])
def test_mask_whose_header_is_not_the_one_that_is_decoded_is_refused(tmp_path, samples):
    labels = np.ones((3, 4, samples), np.uint8)
    data = png(labels, 8, 0 if samples == 1 else 2)
    text, grey = chunk(b"tEXt", b"a\0" + b"b" * 30), png(labels[..., :1], 8, 0)[8:33]
    data = data[:8] + (text if samples == 1 else grey) + data[8:]
    Image.open(BytesIO(data)).load()  # PIL minds neither
    with pytest.raises(DataError, match=r"m\.png: a PNG must begin with its only header"):
        read_mask(written(tmp_path, "m.png", data), Labels.plain(8))


def test_four_bit_grey_would_have_become_other_classes():
    data = png(np.array([[0, 1, 15]], np.uint8), 4, 0)
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(data))), [[0, 17, 255]])


def test_values_that_are_no_class_are_named_and_counted(tmp_path):
    path = saved(tmp_path, "m.png", Image.fromarray(LABELS))
    with pytest.raises(DataError, match=r"m\.png: the mask holds 6 \(1 px\), 7 \(2 px\); expected 0\.\.5 "):
        read_mask(path, Labels.plain(6))
    with pytest.raises(DataError, match=r"3 \(1 px\), 4 \(1 px\), 5 \(1 px\) and 2 more values"):
        read_mask(path, Labels.plain(1))


def test_254_is_a_class_of_255_classes_and_255_never_is(tmp_path):
    path = saved(tmp_path, "m.png", Image.fromarray(np.array([[0, 254, 255]], np.uint8)))
    assert read_mask(path, Labels.plain(255)).tolist() == [[0, 254, 255]]
    with pytest.raises(DataError, match=r"254 \(1 px\)"):
        read_mask(path, Labels.plain(254))


def test_jpeg_mask_is_refused_whatever_its_name(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(DataError, match=r"m\.png: is a JPEG, which changes class ids; expected PNG"):
        read_mask(tmp_path / "m.png", Labels.plain(8))


def test_mask_with_an_orientation_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"m\.png: the mask has an EXIF orientation"):
        read_mask(saved(tmp_path, "m.png", Image.fromarray(LABELS), orientation=6), Labels.plain(8))


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
def test_opaque_picture_of_any_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(PICTURE).convert(mode)
    path = tmp_path / ("i.jpg" if mode == "CMYK" else "i.png")
    image.save(path)
    result = read_image(path)
    assert result.mode == "RGB"
    if mode != "CMYK":  # a JPEG loses; its colours are compared below
        np.testing.assert_array_equal(np.array(result), np.array(image.convert("RGB")))


def test_cmyk_picture_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "i.jpg", quality=95)
    assert np.abs(np.array(read_image(tmp_path / "i.jpg")).astype(int) - [255, 0, 0]).max() <= 6


def test_sixteen_bit_grey_picture_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"i\.png: a picture of mode I"):
        read_image(saved(tmp_path, "i.png", Image.fromarray(np.full((4, 4), 40_000, np.uint16))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_picture_is_refused(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    image.putpixel((1, 1), (10, 20, 30, 0))
    path = saved(tmp_path, "i.png", image.convert(mode))
    if mode == "P":
        Image.new("P", (4, 4)).save(path, transparency=0)
    with pytest.raises(DataError, match=r"i\.png: parts of the picture are transparent"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(tmp_path, orientation):
    path = saved(tmp_path, "i.png", Image.fromarray(PICTURE), orientation)
    expected = np.array(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(np.array(read_image(path)), expected)


def test_turned_picture_carries_nothing_that_would_turn_it_again(tmp_path):
    image = read_image(saved(tmp_path, "i.jpg", Image.fromarray(PICTURE), orientation=6))
    assert image.size == (3, 4)
    assert ImageOps.exif_transpose(image).size == (3, 4)


def test_nonsense_orientation_is_none(tmp_path):
    assert read_image(saved(tmp_path, "i.png", Image.fromarray(PICTURE), orientation=77)).size == (4, 3)


# ------------------------------------------------------------------------------------------------------------- pairs


def pair(folder: Path, image: np.ndarray, mask: np.ndarray, orientation: int | None = None) -> tuple[Path, Path]:
    return (
        saved(folder, "i.png", Image.fromarray(image), orientation),
        saved(folder, "m.png", Image.fromarray(mask)),
    )


def test_pair_is_named_after_its_picture(tmp_path):
    sample = read_pair(*pair(tmp_path, PICTURE, LABELS), Labels.plain(8))
    assert sample.name == "i"
    np.testing.assert_array_equal(np.array(sample.image), PICTURE)
    np.testing.assert_array_equal(sample.mask, LABELS)


def test_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"m\.png: the mask is 3 x 3 \(W x H\), but its image i\.png 4 x 3"):
        read_pair(*pair(tmp_path, PICTURE, LABELS[:, :3]), Labels.plain(8))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_picture_is_turned_exactly_if_only_then_the_mask_fits(tmp_path, orientation):
    stored = read_pair(*pair(tmp_path, PICTURE, LABELS, orientation), Labels.plain(8))
    np.testing.assert_array_equal(np.array(stored.image), PICTURE)
    turned = read_pair(*pair(tmp_path, PICTURE, LABELS.T, orientation), Labels.plain(8))
    np.testing.assert_array_equal(np.array(turned.image), np.array(read_image(tmp_path / "i.png")))
    np.testing.assert_array_equal(turned.mask, LABELS.T)
    assert turned.image.size == (3, 4)


@pytest.mark.parametrize(
    ("orientation", "shape"), [(o, (3, 4)) for o in (2, 3, 4)] + [(o, (3, 3)) for o in range(2, 9)]
)
def test_picture_that_may_be_turned_either_way_is_refused(tmp_path, orientation, shape):
    picture, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    with pytest.raises(DataError, match=rf"i\.png: EXIF orientation {orientation} turns the picture within"):
        read_pair(*pair(tmp_path, picture, mask, orientation), Labels.plain(8))


# ----------------------------------------------------------------------------------------------------- unsound files


def encoded(kind: str) -> bytes:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.98])
def test_truncated_picture_is_named(tmp_path, kind, kept):
    data = encoded(kind)
    with pytest.raises(DataError, match=r"cut\.img: (truncated|is of another format)"):
        read_image(written(tmp_path, "cut.img", data[: int(kept * len(data))]))


def test_truncated_picture_is_not_made_up_when_the_process_allows_it(tmp_path, monkeypatch):
    path = written(tmp_path, "cut.jpg", encoded("JPEG")[:-2000])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.open(path).load()  # half grey, without a word
    with pytest.raises(DataError, match=r"cut\.jpg"):
        read_image(path)


def test_reading_leaves_pillow_strict():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("level", [0, 9])
def test_mask_with_any_one_bit_flipped_is_refused_or_read_as_it_was(tmp_path, level):
    buffer = BytesIO()
    Image.fromarray(LABELS).save(buffer, "PNG", compress_level=level)
    sound, refused = buffer.getvalue(), 0
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            np.testing.assert_array_equal(
                read_mask(written(tmp_path, "m.png", bytes(damaged)), Labels.plain(8)), LABELS
            )
        except DataError:
            refused += 1
    assert refused > 0.8 * 8 * len(sound)  # what is read as it was lies behind the pixels


def test_mask_cut_anywhere_is_refused_or_read_as_it_was(tmp_path):
    sound = saved(tmp_path, "m.png", Image.fromarray(LABELS)).read_bytes()
    for kept in range(len(sound)):
        path = written(tmp_path, "m.png", sound[:kept])
        try:
            np.testing.assert_array_equal(read_mask(path, Labels.plain(8)), LABELS)
        except DataError:
            continue
        assert kept >= len(sound) - len(chunk(b"IEND"))  # every pixel and its checksum are there


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bytes_escape_as_another_error(tmp_path, data):
    damaged = bytearray(encoded(data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert read_image(written(tmp_path, "i.img", bytes(damaged))).mode == "RGB"
        except DataError as error:
            assert "i.img" in str(error)  # noqa: PT017


@pytest.mark.parametrize("side", [9_000, 20_000])
def test_bomb_is_refused_before_it_unfolds(tmp_path, side):
    row = b"\0" + b"\0" * ((side + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND")
    assert len(data) < 60_000
    with pytest.raises(DataError, match=r"bomb\.png: "):
        read_image(written(tmp_path, "bomb.png", data))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello", "is of another format, or damaged"),
        (b"<html>404</html>", "is HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "is of another format"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "is of another format"),
    ],
)
def test_file_that_is_no_picture_says_what_it_is(tmp_path, content, said):
    with pytest.raises(DataError, match=rf"i\.png: {said}.*; expected JPEG or PNG"):
        read_image(written(tmp_path, "i.png", content))


def test_file_that_is_not_there_is_missing_and_a_folder_is_no_picture(tmp_path):
    with pytest.raises(MissingInput, match=r"i\.png: there is no such file"):
        read_image(tmp_path / "i.png")
    with pytest.raises(DataError, match="is no regular file"):
        read_image(tmp_path)
