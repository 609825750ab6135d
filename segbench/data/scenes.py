"""Procedurally drawn scenes: surfaces that look alike indoors and outdoors, and only the things around them tell which.

An image is one to three vertical panels, each an indoor or an outdoor view of its own. The four pairs of surfaces
(sky/ceiling, grass/rug, road/floor, building/wall) are drawn from the same distributions, so that no patch of them can
be classified alone; tree, car and water stand outdoors only, lamp, sofa and table indoors only, so that the panel can.
A bit per panel, not per image, makes "which of these things decides this patch" a question of place.

Everything is a function of (seed, index): no files, and the same scene at any resolution.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image
from pydantic import BaseModel, Field

from segbench.types import Dataset, Sample

WORLD_VERSION = 1  # part of every manifest: any change to what is drawn raises it
SIDE = 96.0  # the unit of every length below: an image is SIDE x SIDE of them, whatever its pixels
GRID = 12  # questions name the cells of a GRID x GRID raster
HELD_OUT = 1_000_000  # indices from here on are the val split of every seed; training stays below

View = Literal["outdoor", "indoor"]
VIEWS: tuple[View, ...] = get_args(View)
PAIRS = (("sky", "ceiling"), ("grass", "rug"), ("road", "floor"), ("building", "wall"))  # outdoor, indoor
CUES: dict[View, tuple[str, ...]] = {"outdoor": ("tree", "car", "water"), "indoor": ("lamp", "sofa", "table")}
NEUTRAL = ("person", "ball")
LOW = ("water", "table")  # these lie or stand on the ground
CLASSES = tuple(name for pair in PAIRS for name in pair) + CUES["outdoor"] + CUES["indoor"] + NEUTRAL
PLACES = ("left", "middle", "right")
ROWS = tuple(f"r{row}" for row in range(GRID))
COLUMNS = tuple(f"c{column}" for column in range(GRID))
WORDS = ("any", "yes", "no", *PLACES, *ROWS, *COLUMNS, *CLASSES)  # all that captions, questions and answers consist of

Length = Annotated[int, Field(ge=GRID, multiple_of=GRID)]
Plane = Float[np.ndarray, "H W"]
Colour = Sequence[float] | Float[np.ndarray, "3"] | Float[np.ndarray, "H W 3"]


class Params(BaseModel, extra="forbid", frozen=True):
    """Which scenes: a world of `seed`, its first `train` and `val` scenes. Seed 0 is what the reference models saw."""

    seed: int = Field(default=1, ge=1)
    train: int = Field(default=480, ge=1, le=HELD_OUT)
    val: int = Field(default=240, ge=1, le=HELD_OUT)
    size: tuple[Length, Length] = (96, 96)  # H, W in pixels


@dataclass(frozen=True)
class Panel:
    """One view; `left` and `right` are its columns in pixels, the second exclusive."""

    view: View
    left: int
    right: int


@dataclass(frozen=True)
class Scene:
    """One drawn picture and everything that is true of it."""

    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]  # every pixel has a class
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Question:
    """A short question and its one-word answer."""

    kind: Literal["position", "any"]
    text: str  # "r3 c9" (which class fills most of that cell?) or "any rug"
    answer: str  # a class, or yes/no


def load(params: Params, split: Literal["train", "val"]) -> Dataset:
    """The scenes of one split; those of `val` are never those of `train`, whatever their numbers."""
    return _Scenes(params, split)


def draw(seed: int, index: int, size: tuple[int, int] = (96, 96)) -> Scene:
    """Scene `index` of the world `seed`. The layout does not depend on the size, the grain of the noise does."""
    layout = np.random.Generator(np.random.PCG64([seed, index, 0]))
    grain = np.random.Generator(np.random.PCG64([seed, index, 1]))
    height, width = size
    image = np.zeros((height, width, 3), np.float32)
    mask = np.zeros((height, width), np.uint8)
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (SIDE / height))[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) * (SIDE / width))[None, :]
    edges = _edges(layout)
    columns = [round(edge * width / SIDE) for edge in edges]
    panels = []
    for left, right, start, stop in zip(edges, edges[1:], columns, columns[1:], strict=False):
        view = VIEWS[layout.integers(2)]
        _draw_panel(layout, grain, view, (left, right), image[:, start:stop], mask[:, start:stop], y, x[:, start:stop])
        panels.append(Panel(view, start, stop))
    for edge in edges[1:-1]:
        image[:, np.abs(x[0] - edge) < 1.0] = 25.0
    image = image * layout.uniform(0.75, 1.15) + grain.normal(0.0, 9.0, image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), mask, tuple(panels))


def cell_counts(mask: UInt8[np.ndarray, "H W"], grid: int = GRID) -> UInt16[np.ndarray, "h w k"]:
    """Pixels of every class in every cell of a grid x grid raster; the sides must be multiples of `grid`."""
    height, width = mask.shape
    onehot = np.eye(len(CLASSES), dtype=np.uint16)[mask]
    return onehot.reshape(grid, height // grid, grid, width // grid, -1).sum((1, 3), dtype=np.uint16)


def caption(counts: UInt16[np.ndarray, "h w k"], random: np.random.Generator, drop: float = 0.4) -> str:
    """What can be seen in each third of the picture, in random order, every word left out with probability `drop`.

    Seen is what fills at least one cell's worth of pixels of that third.
    """
    cell = counts[0, 0].sum()
    words: list[str] = []
    for place, third in zip(PLACES, np.split(counts, 3, axis=1), strict=True):
        seen = np.flatnonzero(third.sum((0, 1)) >= cell)
        said = random.permutation(seen[random.random(len(seen)) >= drop])
        words += [place, *(CLASSES[k] for k in said)]
    return " ".join(words)


def questions(
    counts: UInt16[np.ndarray, "h w k"],
    random: np.random.Generator,
    positions: int = 24,
    closed: int = 4,
    balanced: float = 0.0,
) -> list[Question]:
    """First `positions` questions for the class of a cell, then `closed` ones whether a class is there at all.

    Only cells that one class fills by at least 60 % are asked for. A fraction `balanced` of the position questions
    draws the class first and then a cell of it, so that small things are asked for as often as the sky. One half of
    the closed questions asks for a class that is there (with at least half a cell of pixels), the other for one that
    is nowhere.
    """
    flat = counts.reshape(GRID * GRID, -1)
    cell = flat[0].sum()
    label = flat.argmax(1)
    clear = np.flatnonzero(flat.max(1) >= 0.6 * cell)
    asked = [int(i) for i in random.choice(clear, positions - round(balanced * positions))]
    for k in random.choice(np.unique(label[clear]), positions - len(asked)):
        asked.append(int(random.choice(clear[label[clear] == k])))
    result = [Question("position", f"{ROWS[i // GRID]} {COLUMNS[i % GRID]}", CLASSES[label[i]]) for i in asked]
    total = flat.sum(0, dtype=np.int64)
    there, absent = np.flatnonzero(2 * total >= cell), np.flatnonzero(total == 0)
    for yes in random.random(closed) < 0.5:
        name = CLASSES[random.choice(there if yes else absent)]
        result.append(Question("any", f"any {name}", "yes" if yes else "no"))
    return result


class _Scenes(Dataset):
    def __init__(self, params: Params, split: Literal["train", "val"]):
        self.classes = CLASSES
        self._params = params
        self._range = range(params.train) if split == "train" else range(HELD_OUT, HELD_OUT + params.val)
        decides = [WORLD_VERSION, params.seed, self._range.start, self._range.stop, *params.size]
        self.manifest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Sample:
        number = self._range[index]
        scene = draw(self._params.seed, number, self._params.size)
        return Sample(f"scene-{self._params.seed}-{number:07d}", Image.fromarray(scene.image), scene.mask)


def _edges(random: np.random.Generator) -> list[float]:
    """Left edges of the panels and the right edge of the last, in SIDE units."""
    kind = random.random()
    if kind < 0.3:
        return [0.0, SIDE]
    if kind < 0.75:
        return [0.0, random.uniform(34, 62), SIDE]
    return [0.0, random.uniform(28, 36), random.uniform(60, 68), SIDE]


def _draw_panel(
    random: np.random.Generator,
    grain: np.random.Generator,
    view: View,
    sides: tuple[float, float],
    image: Float[np.ndarray, "H W 3"],
    mask: UInt8[np.ndarray, "H W"],
    y: Plane,
    x: Plane,
) -> None:
    """Paint one panel into its slice of the image. Nothing but class ids and cues may depend on `view`."""
    left, right = sides

    def paint(where: Bool[np.ndarray, "H W"], colour: Colour, name: str) -> None:
        colour = np.asarray(colour, np.float32)
        image[where] = colour[where] if colour.ndim == 3 else colour
        mask[where] = CLASSES.index(name)

    far, ground, middle = (PAIRS[i][VIEWS.index(view)] for i in (0, 2, 3))
    patch = PAIRS[1][VIEWS.index(view)]
    horizon, floor = random.uniform(18, 40), random.uniform(50, 72)
    everywhere = np.ones(mask.shape, bool)
    paint(everywhere & (y < horizon), _haze(random, y, mask.shape), far)
    paint(everywhere & (y >= horizon) & (y < floor), _bricks(random, y, x), middle)
    paint(everywhere & (y >= floor), _gravel(random, grain, mask.shape), ground)
    if random.random() < 0.75:
        cx, cy = random.uniform(left + 6, right - 6), random.uniform(floor + 6, SIDE - 4)
        half_width, half_height = random.uniform(9, 22), random.uniform(7, 15)
        where = (np.abs(x - cx) < half_width) & (np.abs(y - cy) < half_height) & (y >= floor - 3)
        paint(where, _stripes(random, y, x), patch)

    light = random.uniform(0.8, 1.15) + random.uniform(-0.002, 0.002) * (x - left) + random.uniform(-0.001, 0.001) * y
    image *= light[..., None]

    neutral = [NEUTRAL[random.integers(len(NEUTRAL))] for _ in range(random.integers(3))]
    cues = [CUES[view][random.integers(len(CUES[view]))] for _ in range(1 + int(random.random() < 0.6))]
    if random.random() < 0.4:  # a cue in the top zone: early image tokens are not starved by the layout alone
        cues[0] = CUES[view][0]
    high = [random.random() < 0.2 for _ in neutral] + [name == CUES[view][0] and random.random() < 0.7 for name in cues]
    for name, above in zip(neutral + cues, high, strict=True):
        radius = random.uniform(6.0, 13.0) if name in NEUTRAL else random.uniform(8.0, 13.0)
        cx = random.uniform(left + 8, right - 8)
        cy = random.uniform(6, horizon) if above else random.uniform(floor if name in LOW else horizon + 4, 88)
        tint = random.uniform(-18, 18, 3)
        for where, colour in SHAPES[name](y - cy, x - cx, radius):
            paint(where, np.asarray(colour) + tint, name)


def _haze(random: np.random.Generator, y: Plane, shape: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
    base = np.array([random.uniform(165, 215), random.uniform(185, 220), random.uniform(205, 240)])
    return np.broadcast_to(base + (y * random.uniform(-0.5, 0.5))[..., None], (*shape, 3))


def _bricks(random: np.random.Generator, y: Plane, x: Plane) -> Float[np.ndarray, "H W 3"]:
    base = np.array([random.uniform(130, 190), random.uniform(95, 140), random.uniform(70, 110)])
    high, wide = random.uniform(5, 9), random.uniform(8, 14)
    mortar = (y % high < 1.0) | ((x + (y // high % 2) * wide / 2) % wide < 1.0)
    return base - 35.0 * mortar[..., None]


def _gravel(
    random: np.random.Generator, grain: np.random.Generator, shape: tuple[int, int]
) -> Float[np.ndarray, "H W 3"]:
    base = random.uniform(80, 130) + np.array([random.uniform(-8, 12), 0.0, random.uniform(-12, 8)])
    return base + 30.0 * (grain.random(shape) < 0.12)[..., None]


def _stripes(random: np.random.Generator, y: Plane, x: Plane) -> Float[np.ndarray, "H W 3"]:
    base = np.array([random.uniform(60, 100), random.uniform(130, 170), random.uniform(50, 90)])
    lean, period = random.choice([-1.0, 1.0]), random.uniform(4, 7)
    return base + 28.0 * ((x + lean * y) % period < 2.0)[..., None]


# Each shape: (y, x) offsets from its centre and its radius -> what to paint, back to front. Pixels are SIDE units.
_Shape = Callable[[Plane, Plane, float], list[tuple[Bool[np.ndarray, "H W"], tuple[float, float, float]]]]
SHAPES: dict[str, _Shape] = {
    "tree": lambda y, x, r: [
        ((np.abs(x) < 2.5) & (y > 0) & (y < 1.4 * r), (100, 65, 30)),
        ((x / r) ** 2 + ((y + 2) / (0.9 * r)) ** 2 < 1, (25, 85, 35)),
    ],
    "car": lambda y, x, r: [
        ((np.abs(x) < 1.2 * r) & (np.abs(y) < 0.5 * r), (190, 40, 45)),
        ((np.abs(x) < 0.7 * r) & (y < -0.3 * r) & (y > -r), (150, 40, 60)),
        ((np.abs(np.abs(x) - 0.7 * r) < 3) & (np.abs(y - 0.5 * r) < 3), (20, 20, 20)),
    ],
    "water": lambda y, x, r: [
        ((x / (1.3 * r)) ** 2 + (y / (0.6 * r)) ** 2 < 1, (25, 120, 150)),
        (((x / (1.3 * r)) ** 2 + (y / (0.6 * r)) ** 2 < 1) & (np.abs(y % 5) < 1), (150, 215, 225)),
    ],
    "lamp": lambda y, x, r: [
        ((np.abs(x) < 1.5) & (np.abs(y) < 1.2 * r), (60, 60, 50)),
        ((np.abs(x) < 0.8 * r * (0.5 + (y + r) / (2 * r))) & (np.abs(y) < 0.7 * r), (250, 225, 110)),
    ],
    "sofa": lambda y, x, r: [
        ((np.abs(x) < 1.2 * r) & (np.abs(y) < 0.7 * r), (120, 50, 140)),
        ((np.abs(x) < 0.9 * r) & (np.abs(y - 1) < 0.25 * r), (165, 95, 185)),
    ],
    "table": lambda y, x, r: [
        ((np.abs(np.abs(x) - 0.9 * r) < 2) & (y > 0) & (y < 0.9 * r), (95, 60, 25)),
        ((np.abs(x) < 1.25 * r) & (np.abs(y + 0.1 * r) < 0.35 * r), (225, 165, 75)),
    ],
    "person": lambda y, x, r: [
        ((np.abs(x) < 0.45 * r) & (y > -0.4 * r) & (y < 1.2 * r), (40, 60, 170)),
        (x**2 + (y + 0.8 * r) ** 2 < (0.45 * r) ** 2, (235, 190, 160)),
    ],
    "ball": lambda y, x, r: [
        (x**2 + y**2 < (0.75 * r) ** 2, (240, 130, 30)),
        ((x**2 + y**2 < (0.75 * r) ** 2) & (np.abs(x) < 1.5), (250, 250, 250)),
    ],
}
