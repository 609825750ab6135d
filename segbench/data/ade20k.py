"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, 20,210 images to train on and 2,000 to validate on.

    images/{training,validation}/NAME.jpg
    annotations/{training,validation}/NAME.png     0 = other, 1..150 = the classes

Other pixels are out of the official evaluation, so 0 is ignored and k is class k - 1, here and nowhere else.
"""

from segbench.data import hub, listing, native
from segbench.data.facts import Published
from segbench.images import Labels, Mark
from segbench.specs import Split
from segbench.types import IGNORE, Dataset

FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}
LABELS = Labels(
    150,
    {0: IGNORE} | {value: value - 1 for value in range(1, 151)},
    {IGNORE: "published masks hold no 255, so these labels were already shifted (reduce_zero_label)"},
    (Mark(frozenset([0]), 0.5),),
)


class Params(native.Params):
    """Where it is."""

    known = Published.read("ade20k")


def load(params: Params, split: Split) -> Dataset:
    """One split; errors as in `native.split` and `hub.split`."""
    published = params.known.images[split]
    if params.hub:
        return hub.split(params, LABELS, split, published)
    pairs: dict[Split, list[listing.Pair]] = {
        one: listing.beside(params.path / "images" / folder, params.path / "annotations" / folder)
        for one, folder in FOLDERS.items()
    }
    return native.split(params, LABELS, pairs, split, published)
