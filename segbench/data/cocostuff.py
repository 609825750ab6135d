"""COCO-Stuff 164k, things and stuff: 171 classes, 118,287 images to train on and 5,000 to validate on.

    images/{train2017,val2017}/NAME.jpg            or without images/
    stuffthingmaps/{train2017,val2017}/NAME.png    0..181 = COCO id - 1, 255 = unlabelled; or in annotations/, or in
                                                   stuffthingmaps_trainval2017/

COCO has 91 ids for things, 11 of which were never drawn. `classes: 171` counts the others in their order, as most
papers do; `classes: 182` keeps the ids, where the 11 are classes that no pixel has. The copies that mmsegmentation
makes (NAME_labelTrainIds.png) are not read: they are made from the files that are.
"""

from typing import Literal

from pydantic import Field

from segbench.data import hub, listing, native
from segbench.data.facts import Published
from segbench.images import Labels, Mark
from segbench.specs import Split
from segbench.types import IGNORE, Dataset

MASKS = ("stuffthingmaps", "stuffthingmaps_trainval2017", "annotations")
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # in the files; COCO's ids are one more
USED = tuple(value for value in range(182) if value not in UNUSED)
STRANGE: dict[int, str] = dict.fromkeys(
    (*UNUSED, 182),
    "published masks never hold these ids, so these labels were already shifted, or reduced to 171 classes",
)
# Of the masks to train on, 63,965 of 118,287 hold persons (published/cocostuff.json): without 0, classes were shifted
# down. Without any of 171..181 (walls, windows, wood), they were reduced to 171; without 255, the unlabelled filled.
MARKS = (Mark(frozenset([0]), 0.2), Mark(frozenset(range(171, 182)), 0.05), Mark(frozenset([IGNORE]), 0.5))
LABELS = {
    171: Labels(171, {value: one for one, value in enumerate(USED)} | {IGNORE: IGNORE}, STRANGE, MARKS),
    182: Labels(182, {one: one for one in (*USED, IGNORE)}, STRANGE, MARKS),
}


class Params(native.Params):
    """Where it is, and how its classes are counted."""

    known = Published.read("cocostuff")

    classes: Literal[171, 182] = Field(default=171, description="those that were drawn, or all ids of COCO-Stuff")


def load(params: Params, split: Split) -> Dataset:
    """One split; errors as in `native.split`."""
    published, labels, root = params.known.images[split], LABELS[params.classes], params.path
    names = params.known.classes if params.classes == 171 else params.known.facts["classes182"]
    if params.hub:
        return hub.split(params, labels, split, published, classes=names)
    images = listing.first_there(root / "images", root)
    masks = listing.first_there(*(root / one for one in MASKS))
    pairs: dict[Split, list[listing.Pair]] = {
        one: listing.beside(images / f"{one}2017", masks / f"{one}2017", aside="_labelTrainIds.png")
        for one in ("train", "val")
    }
    return native.split(params, labels, pairs, split, published, classes=names)
