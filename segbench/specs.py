"""What the files of models/ and tasks/ may say.

A spec is data: a pydantic model that forbids unknown keys, read from strict YAML. Every message names file, line and
key, and all that is wrong with a file is told at once.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from segbench import files, registry
from segbench.errors import SpecError
from segbench.records import digest
from segbench.strict_yaml import Document
from segbench.types import Dataset, Sample

Split = Literal["train", "val"]
SomeSpec = TypeVar("SomeSpec", bound=BaseModel)


class Spec(BaseModel):
    """Base of everything a YAML file may hold: frozen, no unknown key, no guessing of types.

    A relative `Path` is meant from the folder of the YAML file (`context={"folder": ...}` while it is read). Data sets
    that name no path are looked for in the data folder (`context={"data": ...}`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _from_the_folder_of_the_file(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Path):
            return value
        folder = (info.context or {}).get("folder", Path())
        return (folder / value.expanduser()).resolve()

    def identity(self) -> dict[str, Any]:
        """Everything here that can change a number, as JSON. A path cannot, only what lies there."""
        return _plain(self, paths=False)

    def published(self) -> dict[str, Any]:
        """What may leave this machine: all fields, defaults filled in, but no paths."""
        return _plain(self, paths=False)

    def resolved(self) -> dict[str, Any]:
        """All fields, defaults filled in, paths absolute."""
        return _plain(self, paths=True)


class DataSpec(Spec):
    """A data set: `data: scenes`, or `data: {name: folder, path: ../x}` with the keys of that data module."""

    name: str
    params: SerializeAsAny[BaseModel]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, DataSpec):
            return value
        keys = {"name": value} if isinstance(value, str) else value
        if not isinstance(keys, Mapping) or not isinstance(keys.get("name"), str):
            raise PydanticCustomError("data", "expected the name of a data set, or a mapping with the key 'name'")
        rest = {key: one for key, one in keys.items() if key != "name"}
        try:
            params = registry.module("data", keys["name"]).Params
        except SpecError as error:
            raise PydanticCustomError("data", str(error)) from error  # type: ignore[arg-type]
        context = {key: one for key, one in (info.context or {}).items() if key in ("folder", "data")}
        return {"name": keys["name"], "params": validate(params, rest, context)}

    def load(self, split: Split, limit: int | None = None) -> Dataset:
        """One split; with `limit`, that many of its images, spread evenly. MissingInput when it is not there."""
        whole = registry.module("data", self.name).load(self.params, split)
        return whole if limit is None or limit >= len(whole) else _Thinned(whole, limit)


class ModelSpec(Spec):
    """A model card: one checkpoint and how it is read."""

    name: str
    adapter: str = Field(description="module of segbench/adapters, or a dotted name of your own")
    weights: Path | None = Field(default=None, description="folder of the checkpoint, from the YAML file's own")
    hub: str | None = Field(default=None, description="ORG/NAME on the Hugging Face hub")
    revision: str | None = Field(default=None, description="commit on the hub, 40 hexadecimal digits")
    attention: Literal["causal", "bidirectional", "native"] = Field(
        default="causal", description="among image tokens (Eq. 2); native: whatever the model's own code does"
    )
    implementation: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="float32", description="of weights and activations; auto: what the checkpoint is stored in"
    )
    preprocess: Literal["squash", "pad", "crop", "native"] = Field(
        default="squash", description="how an image of any aspect becomes what the model sees"
    )
    resolution: int | None = Field(
        default=None,
        ge=28,
        le=4096,
        description="side of the square that squash, pad and crop make, if not the model's",
    )
    view: Literal["base", "tiles"] = Field(default="base", description="the whole image, or the tiles it is cut into")
    backend: Literal["pil", "torchvision"] = Field(default="pil", description="of transformers' image processor")
    prompt: str | None = Field(
        default="<image>", description="holds <image> once; null: the checkpoint's own chat template"
    )
    baseline: str | None = Field(default=None, description="the causal twin, for the starvation gap")
    mask_swap: bool = Field(default=False, description="allow another attention than the weights were trained with")
    obtain: str = Field(default="", description="how to come by the weights, where no hub has them")
    description: str = ""
    license: str = ""
    parameters: str = ""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return _checked_name(value)

    @field_validator("adapter")
    @classmethod
    def _adapter(cls, value: str) -> str:
        try:
            registry.find("adapters", value)
        except SpecError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("hub")
    @classmethod
    def _hub(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", value, re.ASCII):
            raise ValueError(f"expected ORG/NAME, got {value!r}")
        return value

    @field_validator("revision")
    @classmethod
    def _revision(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{40}", value):
            raise ValueError(f"expected a commit of 40 hexadecimal digits (branches and tags move), got {value!r}")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSpec":
        if self.weights and self.hub:
            raise ValueError("'weights' and 'hub' are both given; keep one")
        if self.revision and not self.hub:
            raise ValueError("'revision' is a commit of the 'hub' repository, which is not given")
        return self

    def identity(self) -> dict[str, Any]:
        """What can change a number beside the weights, whose contents are hashed on their own."""
        names = {"name", "baseline", "hub", "revision", "obtain", "description", "license", "parameters"}
        later = {name: ModelSpec.model_fields[name].default for name in ("resolution", "view", "backend")}
        return {  # a field that came later and is left as it was gives no old measurement another fingerprint
            key: value for key, value in super().identity().items() if key not in names and value != later.get(key, ...)
        }

    def published(self) -> dict[str, Any]:
        """As of any spec; a revision that nobody stated is said to be unknown."""
        return super().published() | ({"revision": "unknown"} if self.revision is None else {})


class TaskHead(Spec):
    """The keys that every task has. In YAML those of the kind stand beside them."""

    name: str
    kind: str = Field(description="module of segbench/kinds, or a dotted name of your own")
    groups: tuple[str, ...] = ()
    description: str = ""
    seeds: int = Field(default=1, ge=1, le=100, description="how often it is measured, with seeds 0, 1, ...")

    @field_validator("name", "groups")
    @classmethod
    def _names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            _checked_name(name)
        return value


class TaskSpec(TaskHead):
    """One thing to measure."""

    params: SerializeAsAny[BaseModel]  # of the kind
    path: Path

    def requires(self) -> tuple[str, ...]:
        """Names of the tasks whose cells this one reads."""
        return tuple(registry.module("kinds", self.kind).requires(self.params))

    def data(self) -> tuple[DataSpec, ...]:
        """The data sets named in the params."""
        return tuple(_data_of(self.params))

    def identity(self) -> dict[str, Any]:
        """Everything that can change a number; name, groups, description and how often cannot."""
        return {"kind": self.kind, "params": _plain(self.params, paths=False)}

    def published(self) -> dict[str, Any]:
        return self._as_written(paths=False)

    def resolved(self) -> dict[str, Any]:
        return self._as_written(paths=True)

    def _as_written(self, paths: bool) -> dict[str, Any]:
        head = {key: _plain(getattr(self, key), paths) for key in TaskHead.model_fields}
        return head | _plain(self.params, paths)


def read_model(document: Document, path: Path, overrides: Mapping[str, Any] | None = None) -> ModelSpec:
    """The model card of a YAML file. `overrides` replace fields, paths in them meant from the current folder, and are
    appended to the name, as they make another model. SpecError tells everything that is wrong."""
    keys = _keys(document, path.stem)
    card = bound(ModelSpec, keys, document, {"folder": path.parent})
    if not overrides:
        return card
    if "name" in overrides:
        raise SpecError("--model-args: the name of a model is its file's")
    told = {key: Path(str(one)).name if key == "weights" else one for key, one in overrides.items()}
    parts = [f"{key}={re.sub('[^A-Za-z0-9._+-]', '-', str(one))}" for key, one in sorted(told.items())]
    typed = Document(f"--model-args ({path.stem})", dict(overrides), {})
    weights = {"weights": Path.cwd() / str(overrides["weights"])} if "weights" in overrides else {}
    if weights:  # they take the place of whatever the card names
        keys = {key: value for key, value in keys.items() if key not in ("hub", "revision")}
    replaced = keys | dict(overrides) | weights | {"name": "~".join([card.name, *parts])}
    return bound(ModelSpec, replaced, typed, {"folder": path.parent})


def read_task(document: Document, path: Path, data: Path | None = None) -> TaskSpec:
    """The task of a YAML file; its own keys and its kind's are checked together. SpecError tells all that is wrong.

    `data` is the folder in which published data sets are looked for, if not the usual one.
    """
    keys = _keys(document, path.stem)
    own = {key: value for key, value in keys.items() if key in TaskHead.model_fields}
    rest = {key: value for key, value in keys.items() if key not in own}
    context = {"folder": path.parent, "data": data or files.data_home(), "beside": tuple(TaskHead.model_fields)}

    def params() -> BaseModel:
        try:
            kind = registry.module("kinds", str(keys.get("kind")))
        except SpecError as error:
            raise SpecError(f"{document.at(('kind',))}: kind: {error}") from error
        return bound(kind.Params, rest, document, context)

    head, of_kind = together(lambda: bound(TaskHead, own, document, context), params)
    return TaskSpec(**dict(head), params=of_kind, path=path)


def validate(cls: type[SomeSpec], value: Any, context: Mapping[str, Any]) -> SomeSpec:
    """`value` as a `cls`; the messages of the ValidationError say what was expected and what was got."""
    try:  # as JSON: lists are tuples there and strings are paths, but "3" is no number
        return cls.model_validate_json(json.dumps(value, default=str), strict=True, context=dict(context))
    except ValidationError as error:
        beside = context.get("beside", ())
        raise ValidationError.from_exception_data(
            cls.__name__, [_told(cls, one, beside) for one in error.errors()], "json"
        ) from None


def bound(cls: type[SomeSpec], keys: Any, document: Document, context: Mapping[str, Any]) -> SomeSpec:
    """Validate; SpecError with one line per mistake, each with the file and line it is in."""
    try:
        return validate(cls, keys, context)
    except ValidationError as error:
        problems: dict[tuple[Any, ...], list[str]] = {}  # members of a union that all refused are one mistake
        for one in error.errors():
            written = _written(one["loc"], document.value)
            of_key = one["type"] in ("unknown_key", "missing_key")
            place = ".".join(map(str, one["loc"][:-1] if of_key else written))
            mistake = (document.lines.get(written, 0), document.at(written), place, one["loc"] if of_key else ())
            problems.setdefault(mistake, []).append(one["msg"])
        ordered = sorted(problems.items(), key=lambda item: item[0][0])
        lines = [": ".join(filter(None, (at, place, " or ".join(told)))) for (_, at, place, _), told in ordered]
        raise SpecError("\n".join(lines)) from None


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of all calls, or one SpecError with the messages of every one that failed."""
    results, problems = [], []
    for call in calls:
        try:
            results.append(call())
        except SpecError as error:
            problems += str(error).splitlines()
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    return results


class _Thinned(Dataset):
    """Every n-th image of a split."""

    def __init__(self, whole: Dataset, limit: int) -> None:
        self._whole, self._limit = whole, limit
        self.classes, self.subsets, self.published = whole.classes, whole.subsets, whole.published
        self.manifest = digest([whole.manifest, limit])
        if whole.clusters is not None:
            self.clusters = tuple(whole.clusters[self._at(index)] for index in range(limit))

    def __len__(self) -> int:
        return self._limit

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._limit:
            raise IndexError(index)
        return self._whole[self._at(index)]

    def _at(self, index: int) -> int:
        return index * len(self._whole) // self._limit


def _keys(document: Document, stem: str) -> dict[str, Any]:
    """The mapping of a file with its name, which is the file's."""
    if not isinstance(document.value, dict):
        raise SpecError(f"{document.at(())}: expected keys and values, got {_short(document.value)}")
    if document.value.get("name", stem) != stem:
        raise SpecError(f"{document.at(('name',))}: name: a file's name is its registered name: {stem!r}, or rename it")
    return {"name": stem, **document.value}


def _written(loc: tuple[str | int, ...], value: Any) -> tuple[str | int, ...]:
    """The part of pydantic's path that is in the file; the rest names members of unions, or what is missing."""
    for depth, key in enumerate(loc):
        item = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not item and not (isinstance(value, dict) and key in value):
            return loc[:depth]
        value = value[key]  # pyright: ignore  # a list has a number here, a mapping a name
    return loc


def _told(cls: type[BaseModel], error: ErrorDetails, beside: tuple[str, ...]) -> InitErrorDetails:
    """An error of pydantic in this project's words."""
    loc, kind, got = error["loc"], error["type"], _short(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        fields = [*_fields_at(cls, loc[:-1]), *(beside if len(loc) == 1 else ())]
        kind, message = "unknown_key", f"unknown key {str(loc[-1])!r}{registry.nearest(str(loc[-1]), fields)}"
    elif kind == "missing" and isinstance(loc[-1], int):
        message = f"item {loc[-1] + 1} is missing"
    elif kind == "missing":
        kind, message = "missing_key", f"the key {str(loc[-1])!r} is missing"
    elif kind == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"]) if "ctx" in error else []
        message = f"{got} is not one of {', '.join(choices)}{_near(error['input'], choices)}"
    elif kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}, got {got}"
    elif message.startswith("Input should be"):
        message = f"{message.replace('Input should', 'must')}, got {got}"
    details = PydanticCustomError(kind, message)  # type: ignore[arg-type]
    return InitErrorDetails(type=details, loc=loc, input=error["input"])


_EXPECTED = {
    "string_type": "text (quote it if it is meant to be)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "path_type": "a path",
    "none_required": "nothing",
}


def _near(word: Any, choices: list[str]) -> str:
    """`, did you mean 'x'?` where something is near, else nothing: the choices are told already."""
    tail = registry.nearest(word, choices) if isinstance(word, str) else ""
    return tail if tail.startswith(",") else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(cls: Any, loc: tuple[str | int, ...]) -> list[str]:
    """The keys that the spec at a path may have."""
    for key in loc:
        if isinstance(key, int):
            continue
        if key not in cls.model_fields or not (cls := _spec_in(cls.model_fields[key].annotation)):
            return []
    return list(cls.model_fields)


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    """The first spec in `tuple[Spec, ...]`, `Spec | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _spec_in(one))), None)


def _data_of(value: Any) -> Iterator[DataSpec]:
    if isinstance(value, DataSpec):
        yield value
    elif isinstance(value, BaseModel):
        for _, one in value:
            yield from _data_of(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _data_of(one)


def _plain(value: Any, paths: bool) -> Any:
    """Specs as JSON. A data set is written as in YAML: its name beside its params."""
    if isinstance(value, DataSpec):
        return {"name": value.name} | _plain(value.params, paths)
    if isinstance(value, BaseModel):
        return {key: _plain(one, paths) for key, one in value if paths or not isinstance(one, Path)}
    if isinstance(value, tuple | list):
        return [_plain(one, paths) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one, paths) for key, one in value.items()}
    return str(value) if isinstance(value, Path) else value


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=~+-]{0,99}", name) or name == "all":
        raise ValueError(f"{name!r} is no name; letters, digits and . _ = ~ + - make one, and 'all' is taken")
    return name
