"""Cityscapes, fine labels: 19 classes, 2,975 images to train on and 500 to validate on, from 18 and 3 cities.

    leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
    gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png     0..18 = the classes, 255 = void
    gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png          0..33, as published; read where there are no train ids

Train ids are not part of the archive but made from it (createTrainIdLabelImgs of cityscapesScripts); both forms say
the same, so the published ids are turned into train ids here where nobody did it before. Licence plates, which have
the id -1 in the polygons, are not drawn into either of them: their pixels belong to the car (json2labelImg.py there).

Images of a city were taken on a few days by one camera, so that cities, not images, are what a new sample would be of.
"""

import os
from pathlib import Path

from segbench.data import hub, listing, native
from segbench.data.facts import Published
from segbench.errors import DataError
from segbench.images import Labels, Mark
from segbench.specs import Split
from segbench.types import IGNORE, Dataset

PICTURE, TRAIN_IDS, IDS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
CLASS_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # by class; labels.py there
VOID_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)  # ignored in the official evaluation
OF_TRAIN_IDS = Labels(
    19,
    {one: one for one in (*range(19), IGNORE)},
    dict.fromkeys(range(19, 34), "these are label ids under the name of train ids; delete them or make them anew"),
    # Of the 2,975 masks to train on, 2,934 hold road and 1,646 bicycles (published/cityscapes.json): without the one,
    # or without the other, classes were shifted; without 255, void was filled.
    (Mark(frozenset([0]), 0.5), Mark(frozenset([18]), 0.1), Mark(frozenset([IGNORE]), 0.5)),
)
OF_IDS = Labels(
    19,
    dict.fromkeys(VOID_IDS, IGNORE) | {value: train for train, value in enumerate(CLASS_IDS)},
    {IGNORE: "published label ids hold no 255, so these are train ids under the name of label ids"},
    (Mark(frozenset([21]), 0.5), Mark(frozenset(VOID_IDS), 0.5)),  # 2,891 of 2,975 hold vegetation
)


class Params(native.Params):
    """Where it is."""

    known = Published.read("cityscapes")


def load(params: Params, split: Split) -> Dataset:
    """One split; errors as in `native.split`, and DataError where train ids are there for some images only."""
    published = params.known.images[split]
    if params.hub:
        return hub.split(params, OF_IDS, split, published)
    cities: dict[Split, list[str]] = {"train": _cities(params.path, "train"), "val": _cities(params.path, "val")}
    truth = _form(params.path, cities)
    pairs: dict[Split, list[listing.Pair]] = {one: [] for one in cities}
    for one in cities:
        for city in cities[one]:
            images, masks = params.path / "leftImg8bit" / one / city, params.path / "gtFine" / one / city
            pairs[one] += listing.beside(images, masks, PICTURE, truth, city)
    return native.split(params, OF_TRAIN_IDS if truth == TRAIN_IDS else OF_IDS, pairs, split, published)


def _cities(root: Path, split: Split) -> list[str]:
    """Folders of images or of labels; one that has no counterpart is told of by its first file."""
    found: set[str] = set()
    for folder in (root / "leftImg8bit" / split, root / "gtFine" / split):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found |= {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    return sorted(found)


def _form(root: Path, cities: dict[Split, list[str]]) -> str:
    """How the names of the masks to read end; all of them have train ids, or none."""
    with_ids, with_train_ids = set[Path](), set[Path]()
    for split, names in cities.items():
        for folder in (root / "gtFine" / split / city for city in names):
            with_ids |= {folder / name for name in listing.names(folder, IDS)}
            with_train_ids |= {folder / name for name in listing.names(folder, TRAIN_IDS)}
    if with_train_ids and (missing := sorted(with_ids - with_train_ids)):
        raise DataError(
            f"{missing[0]}{TRAIN_IDS}: is not there, nor are {len(missing) - 1} more, but {len(with_train_ids)} others"
            " are; make all of them (createTrainIdLabelImgs of cityscapesScripts), or delete those that are there and"
            " the label ids are read"
        )
    return TRAIN_IDS if with_train_ids else IDS
