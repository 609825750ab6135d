"""What a report on a model holds: data, of which nothing is printed here and nothing is found out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image

from segbench.types import GridMap


@dataclass(frozen=True)
class Check:
    """One thing that has to hold: what was measured, what was expected, and whether that is so."""

    name: str
    about: str
    passed: bool | None  # None: it cannot be tested here, `note` says why
    value: float | None = None
    limit: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Model:
    """What the card and the libraries say; without the last group, where the model could not be loaded."""

    name: str
    adapter: str
    revision: str
    license: str
    attention: str
    mask_swap: bool
    implementation: str
    preprocess: str
    view: str
    device: str
    versions: Mapping[str, str]
    weights: str | None = None  # folder
    card: str | None = None  # file, for those who know

    model_class: str | None = None
    parameters: int | None = None
    dtype: str | None = None
    image_processor: str | None = None
    backend: str | None = None  # of the image processor


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint's tensors, and the names of those that do not fit, by what is wrong with them."""

    shards: Mapping[str, int | None]  # bytes; None for a file that is not there
    keys: Mapping[str, Sequence[str]] | None  # None where it did not come to that


@dataclass(frozen=True)
class Part:
    """A module, by its attributes from the model on."""

    path: str
    kind: str


@dataclass(frozen=True)
class Parts:
    """The module table and the prompt."""

    text: Part
    layers: int
    layer: str  # class
    norm: Part
    projector: Part
    before: tuple[Part, ...]  # modules of the outer model that run before the LLM, in order
    image_token: str
    image_token_id: int
    placeholder: str  # what the family writes for an image
    prompt: str
    read_as: str  # the prompt as the LLM reads it, cut behind the last image token


@dataclass(frozen=True)
class Row:
    """Sites that are alike."""

    first: str
    last: str
    count: int
    width: int
    bytes: int  # of one site, per image


@dataclass(frozen=True)
class Tokens:
    """Where the patches of the example image are."""

    image: str
    size: tuple[int, int]  # (H, W) pixels
    picture: tuple[int, int]  # (H, W) pixels, as the processor is given it
    preprocess: str
    grid: tuple[int, int]
    tokens: int  # image tokens in all
    placeless: int  # of them, that are no patch of the grid
    kinds: str  # what these are, as far as the family says
    empty: int  # patches that hold the centre of no pixel
    unseen: float  # fraction of the pixels that no patch sees
    edges: Mapping[str, int]  # pixels that are unseen along an edge
    sequence: int  # tokens up to the last image token


@dataclass(frozen=True)
class Memory:
    """Bytes, computed from shapes; what a module needs while it runs comes on top. Logits are never computed."""

    weights: int
    batches: Mapping[str, int]  # by images: features of all residual sites, and what enters and leaves a block
    held: int  # features of all residual sites of a thousand images
    held_images: int


@dataclass(frozen=True)
class View:
    """A picture, and where the patches are on it."""

    title: str
    image: Image.Image
    grid_map: GridMap


@dataclass(frozen=True)
class Report:
    """All that was found out; what is missing could not be, and a check says why."""

    model: Model
    checks: tuple[Check, ...]
    checkpoint: Files | None = None
    parts: Parts | None = None
    sites: tuple[Row, ...] = ()
    tokens: Tokens | None = None
    memory: Memory | None = None
    views: tuple[View, ...] = ()  # the example image, and the picture that the processor is given

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.checks if one.passed is False)

    def data(self) -> dict[str, Any]:
        """As JSON; what is not known is left out."""
        return _known(asdict(replace(self, views=()))) | {"passed": not self.failed}


def _known(value: Any) -> Any:
    """A value less all None in it."""
    if isinstance(value, dict):
        return {key: _known(one) for key, one in value.items() if one is not None}
    return [_known(one) for one in value] if isinstance(value, list | tuple) else value
