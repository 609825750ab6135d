"""The data set that a task names, and the images of it that a limited run takes."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, SerializeAsAny, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from segbench import registry
from segbench.errors import SpecError
from segbench.records import digest
from segbench.specs.base import Spec, plain
from segbench.specs.mistakes import validate
from segbench.types import Dataset, Sample

Split = Literal["train", "val"]


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

    def _as_written(self, paths: bool) -> dict[str, Any]:
        return {"name": self.name} | plain(self.params, paths)


def data_sets(value: Any) -> Iterator[DataSpec]:
    """The data sets that are named anywhere in params."""
    if isinstance(value, DataSpec):
        yield value
    elif isinstance(value, BaseModel):
        for _, one in value:
            yield from data_sets(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from data_sets(one)


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
