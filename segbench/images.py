"""Pictures and masks from files that nobody has checked: read exactly, or refused by name.

A mask is an 8-bit PNG of class ids, grey or palette (the indices count, never the colours). Whatever changes class ids
without a word is refused: 16 bits (cut off by a cast), fewer than 8 bits of grey (which decoders stretch to 0..255, so
that class 15 becomes 255), RGB and alpha, JPEG, values that are no class, checksums that do not match.

EXIF orientation: a picture may be stored lying and carry a tag that says so, and its mask may be drawn on the stored or
on the turned picture. The mask's size tells which: the picture is turned exactly if the mask fits only then. Where both
frames have the same size (square, upside down, mirrored) nothing tells, and the pair is refused.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
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


def read_image(path: Path) -> Image.Image:
    """The picture as RGB, upright, and without metadata that could turn it again.

    Grey and CMYK are converted; transparency and 16-bit grey have no one meaning as RGB and are refused.
    MissingInput if the file is not there, DataError if it is no sound PNG or JPEG.
    """
    return _rgb(path, _upright(_decode(path, _read(path), IMAGE_FORMATS)))


def read_mask(path: Path, classes: int) -> UInt8[np.ndarray, "H W"]:
    """Class ids 0..classes-1, and IGNORE; MissingInput if the file is not there, DataError for anything else."""
    assert 1 <= classes <= IGNORE, f"{classes} classes do not fit into bytes of which {IGNORE} means ignore"
    data = _read(path)
    image = _decode(path, data, MASK_FORMATS)
    if data[8:16] != _HEADER or data.count(_HEADER) != 1:  # PIL takes one at any place, and the last of several
        raise DataError(f"{path}: a PNG must begin with its only header; save it again")
    depth, colour = data[24], data[25]
    if not (colour == _PALETTE or (colour == _GREY and depth == 8)):
        raise DataError(
            f"{path}: the mask is {depth}-bit {_COLOURS[colour]}; expected an 8-bit grey or a palette PNG of class ids"
        )
    if _orientation(image) != 1:
        raise DataError(f"{path}: the mask has an EXIF orientation; save it without one, in the frame of its image")
    mask = np.array(image)
    wrong = mask[(mask >= classes) & (mask != IGNORE)]
    if wrong.size:
        values, pixels = np.unique(wrong, return_counts=True)
        said = ", ".join(f"{value} ({count} px)" for value, count in zip(values[:5], pixels[:5], strict=True))
        more = f" and {len(values) - 5} more values" if len(values) > 5 else ""
        raise DataError(
            f"{path}: the mask holds {said}{more}; expected class ids 0..{classes - 1} and {IGNORE} where unlabelled"
        )
    return mask


def read_pair(image: Path, mask: Path, classes: int) -> Sample:
    """A picture and its mask in the same frame, named after the picture; errors as in `read_image` and `read_mask`."""
    stored = _decode(image, _read(image), IMAGE_FORMATS)
    upright = _upright(stored)
    truth = read_mask(mask, classes)
    frame = (truth.shape[1], truth.shape[0])
    if frame not in (stored.size, upright.size):
        turned = f" ({_size(upright.size)} turned by its EXIF tag)" if upright.size != stored.size else ""
        raise DataError(f"{mask}: the mask is {_size(frame)}, but its image {image.name} {_size(stored.size)}{turned}")
    if _orientation(stored) != 1 and stored.size == upright.size:
        raise DataError(
            f"{image}: EXIF orientation {_orientation(stored)} turns the picture within {_size(frame)}, so that its"
            " mask fits either way; save the picture as it is to be seen, without the tag"
        )
    return Sample(image.stem, _rgb(image, stored if frame == stored.size else upright), truth)


def _read(path: Path) -> bytes:
    try:
        if path.is_file():  # no pipe, which would never end
            return path.read_bytes()
        if path.exists():
            raise DataError(f"{path}: is no regular file")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    raise MissingInput(f"{path}: there is no such file")


def _decode(path: Path, data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The picture as it is stored, all its bytes read and checked."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(f"{path}: not read, since this process lets PIL make up the rest of truncated files")
    try:
        with Image.open(BytesIO(data), formats=formats) as first:
            if first.width * first.height > MAX_PIXELS:
                raise DataError(f"{path}: claims {_size(first.size)}; more than {MAX_PIXELS:,} pixels are not read")
            first.verify()  # checksums of a PNG, nothing of a JPEG; the file must be opened anew
        image = Image.open(BytesIO(data), formats=formats)
        image.load()
        _orientation(image)  # here, since metadata are parsed no sooner than they are asked for
    except SegbenchError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {_what(data)}; expected {' or '.join(formats)}") from error
    except Exception as error:  # PIL names no set of exceptions: damage surfaces as any of a dozen
        raise DataError(f"{path}: truncated or damaged ({error})") from error
    return image


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:
        raise DataError(f"{path}: a picture of mode {image.mode}; expected 8 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path}: parts of the picture are transparent; save it on the background that is meant")
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
