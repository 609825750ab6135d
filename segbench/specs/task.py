"""A task: tasks/*.yaml, whose own keys and its kind's stand side by side."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SerializeAsAny, field_validator

from segbench import files, registry
from segbench.errors import SpecError
from segbench.specs.base import Spec, checked_name, plain
from segbench.specs.data import DataSpec, data_sets
from segbench.specs.mistakes import bound, named, together
from segbench.strict_yaml import Document

MUTE: dict[str, Any] = {
    "changes": "no number"
}  # `json_schema_extra` of a kind's key whose default stands for all values


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
            checked_name(name)
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
        return tuple(data_sets(self.params))

    def identity(self) -> dict[str, Any]:
        """Everything that can change a number; name, groups, description, how often and `MUTE` keys cannot."""
        keys = type(self.params).model_fields.items()
        mute = {key: field.default for key, field in keys if field.json_schema_extra == MUTE}
        return {"kind": self.kind, "params": plain(self.params.model_copy(update=mute), paths=False)}

    def _as_written(self, paths: bool) -> dict[str, Any]:
        head = {key: plain(getattr(self, key), paths) for key in TaskHead.model_fields}
        return head | plain(self.params, paths)


def read_task(document: Document, path: Path, data: Path | None = None) -> TaskSpec:
    """The task of a YAML file; its own keys and its kind's are checked together. SpecError tells all that is wrong.

    `data` is the folder in which published data sets are looked for, if not the usual one.
    """
    keys = named(document, path.stem)
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
