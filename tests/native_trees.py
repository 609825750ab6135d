"""Drawn trees of all published data sets, small, in their own layouts and with the names that their files have.

Masks are (values, class ids) by turns: what is stored, and what it must become, told without the package's tables.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Values = UInt8[np.ndarray, "H W"]
SIZE = (4, 6)  # H, W
CITIES = {"train": ("aachen", "bremen", "ulm"), "val": ("frankfurt", "munster")}


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)


def mask(path: Path, values: Values, palette: bool = False) -> None:
    """A PNG of grey values, or of indices into a palette whose colours are other numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([(37 * index + 11) % 256 for index in range(768)])
        assert image.mode == "P"
    image.save(path)


def drawn(present: Iterable[int], seed: int) -> Values:
    """Each of the values at least once (24 pixels hold no more), the rest at random."""
    random = np.random.default_rng(seed)
    present = list(present)
    values = np.array(present + random.choice(present, SIZE[0] * SIZE[1] - len(present)).tolist(), np.uint8)
    return random.permutation(values).reshape(SIZE)


def treat(masks: Iterable[Path], change: Callable[[Values], Values]) -> None:
    """Store other values, as somebody's preparation would have done."""
    masks = list(masks)
    assert masks, "nothing to treat"
    for path in masks:
        image = Image.open(path)
        mask(path, change(np.array(image)), palette=image.mode == "P")


def to(changes: dict[int, int]) -> Callable[[Values], Values]:
    """What `treat` takes: these values become those, all at once."""
    table = np.arange(256, dtype=np.uint8)
    table[list(changes)] = list(changes.values())
    return lambda values: table[values]


def ade20k(root: Path, train: int = 3, val: int = 2) -> Path:
    for split, count in (("training", train), ("validation", val)):
        short = split.removesuffix("ing").removesuffix("idation")
        for index in range(count):
            name = f"ADE_{short}_{index + 1:08d}"
            picture(root / "images" / split / f"{name}.jpg", index)
            mask(root / "annotations" / split / f"{name}.png", drawn((0, 1, 2, 150), index))
    return root


def cityscapes(root: Path, train_ids: bool = False, each: int = 3) -> Path:
    """Label ids; with `train_ids` both forms."""
    ids, trained = (0, 3, 7, 8, 21, 26, 33), (255, 255, 0, 1, 8, 13, 18)  # of cityscapesScripts
    for split, cities in CITIES.items():
        for city in cities:
            for index in range(each):
                name, values = f"{city}_{index:06d}_000019", drawn(ids, index)
                picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", index)
                folder = root / "gtFine" / split / city
                mask(folder / f"{name}_gtFine_labelIds.png", values)
                mask(folder / f"{name}_gtFine_instanceIds.png", values)  # also there, never read
                (folder / f"{name}_gtFine_polygons.json").write_text("{}")
                if train_ids:
                    table = to(dict(zip(ids, trained, strict=True)))
                    mask(folder / f"{name}_gtFine_labelTrainIds.png", table(values))
    return root


def voc2012(root: Path, train: int = 4, val: int = 3, more: int = 5) -> Path:
    """VOCdevkit/VOC2012; `more` images are of SBD, whose masks have no border."""
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    names = [f"20{7 + index % 5:02d}_{index:06d}" for index in range(train + val + more)]
    own, held_out, sbd = names[:train], names[train : train + val], names[train + val :]
    for index, name in enumerate(names):
        picture(folder / "JPEGImages" / f"{name}.jpg", index)
        if name in sbd:
            mask(folder / "SegmentationClassAug" / f"{name}.png", drawn((0, 15), index))
        else:
            mask(folder / "SegmentationClass" / f"{name}.png", drawn((0, 1, 20, 255), index), palette=True)
    for listed, wanted in (("train", own), ("val", held_out), ("trainaug", [*own, *sbd])):
        (lists / f"{listed}.txt").write_text("".join(f"{name}\n" for name in wanted))
    return root


def camvid(root: Path, train: int = 4, val: int = 3, test: int = 2, lists: bool = True) -> Path:
    drives = (("train", "0001TP_00", train), ("val", "0016E5_0", val), ("test", "Seq05VD_f0", test))
    for split, drive, count in drives:
        names = [f"{drive}{index + 6690}.png" for index in range(count)]
        for index, name in enumerate(names):
            picture(root / split / name, index)
            mask(root / f"{split}annot" / name, drawn((0, 3, 10, 11), index))
        if lists:
            lines = [f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n" for name in names]
            (root / f"{split}.txt").write_text("".join(lines))
    return root


def cocostuff(root: Path, train: int = 4, val: int = 3, masks: str = "stuffthingmaps", images: str = "images") -> Path:
    for split, count, start in (("train2017", train, 9), ("val2017", val, 139)):
        for index in range(count):
            name = f"{start + index:012d}"
            picture(root / images / split / f"{name}.jpg", index)
            mask(root / masks / split / f"{name}.png", drawn((0, 12, 92, 172, 181, 255), index))
    return root
