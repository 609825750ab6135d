"""CamVid as SegNet has it: 11 classes, 367 images to train on, 101 to validate on and 233 to test on, 480 x 360.

    {train,val,test}/NAME.png
    {train,val,test}annot/NAME.png     0..10 = the classes, 11 = void
    {train,val,test}.txt               `.../train/NAME.png .../trainannot/NAME.png`; without them, all files of a folder

The literature reports the 233 images of `test` (SegNet, section 4), for which `val: test` stands.
All images are frames of four drives, and the 101 to validate on are of one: an interval over images says nothing about
other drives.
"""

from typing import Literal

from pydantic import Field

from segbench.data import hub, listing, native
from segbench.data.facts import Published
from segbench.images import Labels, Mark
from segbench.specs import Split
from segbench.types import IGNORE, Dataset

VOID = 11
LABELS = Labels(
    11,
    {one: one for one in range(11)} | {VOID: IGNORE},
    {IGNORE: "void is 11 in the published files, so these labels were already treated"},
    # Every one of the 367 masks holds void and 201 hold bicyclists (published/camvid.json): shifted up by one class,
    # 11 would be bicyclist.
    (Mark(frozenset([VOID]), 0.9), Mark(frozenset([0]), 0.5)),
)


class Params(native.Params):
    """Where it is, and what to validate on."""

    known = Published.read("camvid")

    val: Literal["val", "test"] = Field(default="val", description="101 images, or the 233 that papers report")


def load(params: Params, split: Split) -> Dataset:
    """One split; errors as in `native.split`."""
    folders: dict[Split, str] = {"train": "train", "val": params.val}
    published = params.known.images[folders[split]]
    if params.hub:
        return hub.split(params, LABELS, split, published)
    pairs: dict[Split, list[listing.Pair]] = {}
    for one, folder in folders.items():
        images, masks, listed = params.path / folder, params.path / f"{folder}annot", params.path / f"{folder}.txt"
        if listed.is_file():
            pairs[one] = listing.of(listing.read(listed), images, masks, ".png")
        else:
            pairs[one] = listing.beside(images, masks, ".png")
    return native.split(params, LABELS, pairs, split, published)
