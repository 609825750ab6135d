"""Pictures and masks from files that nobody has checked: read exactly, or refused by name.

A mask is an 8-bit PNG, grey or palette (the indices count, never the colours), whose values `Labels` turns into class
ids. Whatever changes them without a word is refused: 16 bits (cut off by a cast), fewer than 8 bits of grey (which
decoders stretch to 0..255, so that class 15 becomes 255), RGB and alpha, JPEG, values that mean nothing, checksums that
do not match.

EXIF orientation: a picture may be stored lying and carry a tag that says so, and its mask may be drawn on the stored or
on the turned picture. The mask's size tells which: the picture is turned exactly if the mask fits only then. Where both
frames have the same size (square, upside down, mirrored) nothing tells, and the pair is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from segbench.errors import DataError, MissingInput, SegbenchError
from segbench.types import IGNORE, Sample

IMAGE_FORMATS = ("JPEG", "PNG")
MASK_FORMATS = ("PNG",)
MAX_PIXELS = 64 * 2**20  # a file of a few kilobytes can claim any size

_HEADER = b"\0\0\0\x0dIHDR"  # PNG standard, 5.6: the first chunk, once
_GREY, _PALETTE = 0, 3
_COLOURS = {_GREY: "grey", 2: "RGB", _PALETTE: "palette", 4: "grey with alpha", 6: "RGBA"}  # PNG standard, 11.2.1
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")  # 8 bits or less per channel
_TURNS = {  # EXIF standard, tag 274
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRANGERS = {
    b"\xff\xd8\xff": "is a JPEG, which changes class ids",
    b"version https://git-lfs": "is a Git LFS pointer (git lfs pull)",
    b"<": "is HTML or XML",
}


class Mark(NamedTuple):
    """Untreated masks of a data set hold one of these values in at least this share of any few dozen of them."""

    values: frozenset[int]
    share: float


@dataclass(frozen=True)
class Labels:
    """What the values in the mask files of a data set stand for: the one place where labels are shifted or ignored."""

    classes: int
    meaning: Mapping[int, int]  # value in the file -> class id or IGNORE; any other value is refused
    strange: Mapping[int, str] = field(default_factory=dict)  # what a value says about the file that holds it
    marks: tuple[Mark, ...] = ()

    def __post_init__(self) -> None:
        assert 1 <= self.classes <= IGNORE, f"{self.classes} classes do not fit into 0..{IGNORE - 1}"
        assert all(0 <= one < self.classes or one == IGNORE for one in self.meaning.values())

    @classmethod
    def plain(cls, classes: int) -> "Labels":
        """Values are class ids already, and IGNORE is IGNORE."""
        return cls(classes, {one: one for one in (*range(classes), IGNORE)})

    def ids(self, values: UInt8[np.ndarray, "H W"], name: str) -> UInt8[np.ndarray, "H W"]:
        """Class ids and IGNORE; DataError, naming the file and the values, where one has no meaning."""
        wrong = values[~self._known[values]]
        if wrong.size:
            found, pixels = np.unique(wrong, return_counts=True)
            said = ", ".join(f"{value} ({count} px)" for value, count in zip(found[:5], pixels[:5], strict=True))
            more = f" and {len(found) - 5} more values" if len(found) > 5 else ""
            hints = dict.fromkeys(self.strange[value] for value in found.tolist() if value in self.strange)
            said = f"{name}: the mask holds {said}{more}; expected {_ranges(self.meaning)}"
            raise DataError("; ".join((said, *hints)))
        return self._table[values]

    @cached_property
    def _table(self) -> UInt8[np.ndarray, " 256"]:
        return np.array([self.meaning.get(value, IGNORE) for value in range(256)], np.uint8)

    @cached_property
    def _known(self) -> Bool[np.ndarray, " 256"]:
        return np.isin(np.arange(256), list(self.meaning))


class File(NamedTuple):
    """The bytes of a picture or a mask, and what to call them."""

    name: str  # in messages
    data: bytes

    @classmethod
    def of(cls, path: Path) -> "File":
        """MissingInput if there is no such file, DataError if it cannot be read."""
        return cls(str(path), _read(path))


def read_image(path: Path) -> Image.Image:
    """The picture as RGB, upright, and without metadata that could turn it again.

    Grey and CMYK are converted; transparency and 16-bit grey have no one meaning as RGB and are refused.
    MissingInput if the file is not there, DataError if it is no sound PNG or JPEG.
    """
    file = File.of(path)
    return _rgb(file.name, _upright(_decode(file, IMAGE_FORMATS)))


def read_mask(path: Path, labels: Labels) -> UInt8[np.ndarray, "H W"]:
    """Class ids, and IGNORE; MissingInput if the file is not there, DataError for whatever cannot be trusted."""
    return decode_mask(File.of(path), labels)


def decode_mask(file: File, labels: Labels) -> UInt8[np.ndarray, "H W"]:
    """As `read_mask`."""
    return labels.ids(mask_values(file), file.name)


def mask_values(file: File) -> UInt8[np.ndarray, "H W"]:
    """The values as they are stored, before they mean anything; DataError if the file may have changed them."""
    name, data = file
    image = _decode(file, MASK_FORMATS)
    if data[8:16] != _HEADER or data.count(_HEADER) != 1:  # PIL takes one at any place, and the last of several
        raise DataError(f"{name}: a PNG must begin with its only header; save it again")
    depth, colour = data[24], data[25]
    if not (colour == _PALETTE or (colour == _GREY and depth == 8)):
        raise DataError(
            f"{name}: the mask is {depth}-bit {_COLOURS[colour]}; expected an 8-bit grey or a palette PNG of class ids"
        )
    if _orientation(image) != 1:
        raise DataError(f"{name}: the mask has an EXIF orientation; save it without one, in the frame of its image")
    return np.array(image)


def read_pair(image: Path, mask: Path, labels: Labels) -> Sample:
    """A picture and its mask in the same frame, named after the picture; errors as in `read_image` and `read_mask`."""
    return decode_pair(image.stem, File.of(image), File.of(mask), labels)


def decode_pair(
    name: str, image: File, mask: File, labels: Labels, undecided: Literal["refuse", "as stored"] = "refuse"
) -> Sample:
    """As `read_pair`. `undecided` is what to do where an EXIF tag turns the picture and its mask fits either way."""
    stored = _decode(image, IMAGE_FORMATS)
    upright = _upright(stored)
    truth = decode_mask(mask, labels)
    frame = (truth.shape[1], truth.shape[0])
    if frame not in (stored.size, upright.size):
        turned = f" ({_size(upright.size)} turned by its EXIF tag)" if upright.size != stored.size else ""
        short = Path(image.name).name
        raise DataError(f"{mask.name}: the mask is {_size(frame)}, but its image {short} {_size(stored.size)}{turned}")
    if undecided == "refuse" and _orientation(stored) != 1 and stored.size == upright.size:
        raise DataError(
            f"{image.name}: EXIF orientation {_orientation(stored)} turns the picture within {_size(frame)}, so that"
            " its mask fits either way; save the picture as it is to be seen, without the tag"
        )
    return Sample(name, _rgb(image.name, stored if frame == stored.size else upright), truth)


def _read(path: Path) -> bytes:
    try:
        if path.is_file():  # no pipe, which would never end
            return path.read_bytes()
        if path.exists():
            raise DataError(f"{path}: is no regular file")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    raise MissingInput(f"{path}: there is no such file")


def _decode(file: File, formats: tuple[str, ...]) -> Image.Image:
    """The picture as it is stored, all its bytes read and checked."""
    name, data = file
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(f"{name}: not read, since this process lets PIL make up the rest of truncated files")
    try:
        with Image.open(BytesIO(data), formats=formats) as first:
            if first.width * first.height > MAX_PIXELS:
                raise DataError(f"{name}: claims {_size(first.size)}; more than {MAX_PIXELS:,} pixels are not read")
            first.verify()  # checksums of a PNG, nothing of a JPEG; the file must be opened anew
        image = Image.open(BytesIO(data), formats=formats)
        image.load()
        _orientation(image)  # here, since metadata are parsed no sooner than they are asked for
    except SegbenchError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_what(data)}; expected {' or '.join(formats)}") from error
    except Exception as error:  # PIL names no set of exceptions: damage surfaces as any of a dozen
        raise DataError(f"{name}: truncated or damaged ({error})") from error
    return image


def _rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:
        raise DataError(f"{name}: a picture of mode {image.mode}; expected 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{name}: parts of the picture are transparent; save it on the background that is meant")
    return Image.fromarray(np.asarray(image.convert("RGB")))  # a copy without metadata: no processor turns it again


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (as stored) where the tag is absent or nonsense."""
    tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(tag) if tag in _TURNS else 1


def _what(data: bytes) -> str:
    """What a file is that is no picture of the wanted kind, in words."""
    for start, name in _STRANGERS.items():
        if data.startswith(start):
            return name
    return "is empty" if not data else "is of another format, or damaged"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (W x H)"


def _ranges(values: Iterable[int]) -> str:
    """Numbers in words: `0..18 and 255`."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and parts[-1][-1] == value - 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    said = ["..".join(map(str, part)) for part in parts]
    return " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
