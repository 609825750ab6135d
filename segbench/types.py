"""The nouns of segbench. Everything here is frozen data; nothing here loads a model.

Axis letters, the same in every annotation of the package:
    b images, t image tokens in raster order (t = h*w), s sequence positions, d hidden width,
    k classes, l probed sites, h w patch grid, H W pixels of the ground-truth mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from segbench.errors import SpecError

IGNORE = 255  # mask value that no loss and no metric counts

Stage = Literal["encoder", "adapter", "llm"]
Stream = Literal["hidden", "key_pre", "key", "value"]
Unit = Literal["%", "pp", "ratio", "count"]


@dataclass(frozen=True)
class Site:
    """A place in the model where every image token has one vector.

    `encoder` is what the adapter (projector) consumes, `adapter` its output, `llm.L` the residual that enters LLM
    block L (so `llm.0` is the adapter's output in the sequence, and the last one enters the final norm), and
    `llm.norm` the state after the final norm, which is what `output_hidden_states[-1]` of transformers holds.
    `llm.L.key` and `llm.L.value` are what the attention of block L makes of its input, as a cache holds them (heads
    side by side), `llm.L.key_pre` the keys before the rotary embedding.
    """

    stage: Stage
    layer: int | Literal["norm"] = 0
    stream: Stream = "hidden"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `encoder`, `adapter`, `llm.12`, `llm.norm` or `llm.12.value`; SpecError for anything else."""
        stage, _, rest = text.partition(".")
        layer, _, stream = rest.partition(".")
        known = stage in ("encoder", "adapter") and not rest
        streams = ("", "key_pre", "key", "value")
        known = known or (stage == "llm" and ((layer.isdecimal() and stream in streams) or rest == "norm"))
        if not known:
            raise SpecError(
                f"{text!r} is no site; expected encoder, adapter, llm.12, llm.norm, llm.12.key or llm.12.value"
            )
        number: int | Literal["norm"] = "norm" if layer == "norm" else int(layer or 0)
        return cls(stage, number, stream or "hidden")  # type: ignore[arg-type]

    @property
    def is_layer(self) -> bool:
        """Whether it is `llm.L`: a residual of the LLM before the final norm, no key and no value."""
        return self.stage == "llm" and self.stream == "hidden" and self.layer != "norm"

    def __str__(self) -> str:
        tail = f".{self.layer}" if self.stage == "llm" else ""
        return self.stage + tail + ("" if self.stream == "hidden" else f".{self.stream}")


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth; neither is ever resized by a data set."""

    name: str
    image: Image.Image  # RGB
    mask: UInt8[np.ndarray, "H W"]  # class ids, IGNORE where unlabelled


class Dataset(ABC):
    """One split of a data set, read lazily."""

    classes: tuple[str, ...]
    manifest: str  # sha256 over everything that decides the samples; part of every fingerprint
    clusters: tuple[str, ...] | None = None  # which images were taken together (a city); None: each on its own
    subsets: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # classes of further mean IoUs: miou_NAME
    published: int | None = None  # images of the published split, where fewer are here

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class GridMap:
    """Where the patches of one image lie: an affine map from original pixels to patch-grid coordinates.

    Pixel row y has its centre at grid coordinate (y + 0.5) * scale[0] + shift[0] - 0.5, in units of patches, where
    integer coordinates are patch centres; columns alike. Pixels outside `seen` never reached the model: they are out of
    the loss and out of every metric, and are reported as coverage.
    """

    grid: tuple[int, int]  # (h, w) patches
    image: tuple[int, int]  # (H, W) original pixels
    scale: tuple[float, float]  # patches per original pixel
    shift: tuple[float, float]  # patches
    seen: tuple[int, int, int, int]  # top, left, bottom, right in original pixels, the last two exclusive

    @classmethod
    def squash(cls, grid: tuple[int, int], image: tuple[int, int]) -> "GridMap":
        """The grid covers exactly the whole image, whatever its aspect."""
        return cls(grid, image, (grid[0] / image[0], grid[1] / image[1]), (0.0, 0.0), (0, 0, *image))

    def coordinates(self, axis: Literal[0, 1]) -> Float[np.ndarray, " n"]:
        """Grid coordinate of every original pixel centre along one axis (0 rows, 1 columns), not clamped."""
        return (np.arange(self.image[axis]) + 0.5) * self.scale[axis] + self.shift[axis] - 0.5


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """One number a task kind yields."""

    metric: str
    value: float
    unit: Unit
    count: int  # images behind the number
    site: str | None = None
    key: str | None = None  # class, patch index or condition: whatever the kind splits by
    interval: Interval | None = None
