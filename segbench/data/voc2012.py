"""PASCAL VOC 2012 segmentation: 20 classes and the background, 1,464 images to train on and 1,449 to validate on.

    JPEGImages/NAME.jpg
    SegmentationClass/NAME.png                    palette; 0 = background, 1..20 = the classes, 255 = border, difficult
    ImageSets/Segmentation/{train,val}.txt        one NAME a line

`train: aug` takes the 10,582 images of the usual augmented set: those of VOC, and those that the Semantic Boundaries
Dataset (SBD) labels beside them and VOC does not validate on, whose masks have no border:

    SegmentationClassAug/NAME.png
    ImageSets/Segmentation/{trainaug,train_aug}.txt, or aug.txt with the 9,118 of SBD alone

An image that VOC labels has VOC's mask, whatever else lies in SegmentationClassAug. Lists may also hold lines like
`/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png`. The measure `miou_fg20` leaves the background out of the mean.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from segbench.data import hub, listing, native
from segbench.data.facts import Published
from segbench.errors import MissingInput
from segbench.images import Labels, Mark
from segbench.specs import Split
from segbench.types import IGNORE, Dataset

LISTS = ("trainaug.txt", "train_aug.txt", "aug.txt")
LABELS = Labels(
    21,
    {one: one for one in (*range(21), IGNORE)},
    dict.fromkeys(range(21, IGNORE), "the palette's indices are the classes, not its colours turned to grey"),
    (Mark(frozenset([0]), 0.5), Mark(frozenset([IGNORE]), 0.5)),
)
OF_SBD = (Mark(frozenset([0]), 0.5),)  # its masks have no border
SUBSETS = {"fg20": tuple(range(1, 21))}


class Params(native.Params):
    """Where it is, and what to train on."""

    known = Published.read("voc2012")

    train: Literal["voc", "aug"] = Field(default="voc", description="its own 1,464 images, or SBD's as well: 10,582")


def load(params: Params, split: Split) -> Dataset:
    """One split; errors as in `native.split`, also where the lists let an image into both."""
    published = params.known.images["trainaug" if split == "train" and params.train == "aug" else split]
    if params.hub:
        return hub.split(params, LABELS, split, published, SUBSETS)
    places = (params.path / name for name in (".", "VOC2012", "VOCdevkit/VOC2012"))
    root = listing.first_there(*(place / "JPEGImages" for place in places)).parent
    lists, images, masks = root / "ImageSets" / "Segmentation", root / "JPEGImages", root / "SegmentationClass"
    if not lists.is_dir():
        native.complete(params.known, str(params.path), 0, split, published, False, "segbench data get voc2012")
    own = listing.read(lists / "train.txt")
    pairs: dict[Split, list[listing.Pair]] = {
        "train": listing.of(own, images, masks),
        "val": listing.of(listing.read(lists / "val.txt"), images, masks),
    }
    if params.train == "aug":
        more = set(_augmented(lists)) - set(own)
        pairs["train"] += listing.of(more, images, root / "SegmentationClassAug", marks=OF_SBD)
        pairs["train"].sort(key=lambda pair: pair.name)
    return native.split(params, LABELS, pairs, split, published, SUBSETS)


def _augmented(lists: Path) -> list[str]:
    for name in LISTS:
        if (lists / name).is_file():
            return listing.read(lists / name)
    raise MissingInput(
        f"{lists}: none of {', '.join(LISTS)} is there; they and SegmentationClassAug come from SBD, as by"
        " tools/dataset_converters/voc_aug.py of mmsegmentation, or leave `train: aug` out"
    )
