"""What every spec is: data that forbids unknown keys, and that can be written as JSON again."""

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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
        return self._as_written(paths=False)

    def published(self) -> dict[str, Any]:
        """What may leave this machine: all fields, defaults filled in, but no paths."""
        return self._as_written(paths=False)

    def resolved(self) -> dict[str, Any]:
        """All fields, defaults filled in, paths absolute."""
        return self._as_written(paths=True)

    def _as_written(self, paths: bool) -> dict[str, Any]:
        """The keys of the YAML file as JSON; those that hold a path only with `paths`."""
        return _fields(self, paths)


def checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=~+-]{0,99}", name) or name == "all":
        raise ValueError(f"{name!r} is no name; letters, digits and . _ = ~ + - make one, and 'all' is taken")
    return name


def plain(value: Any, paths: bool) -> Any:
    """A value of a spec as JSON."""
    if isinstance(value, Spec):
        return value._as_written(paths)
    if isinstance(value, BaseModel):  # what a user's module takes need not be a Spec
        return _fields(value, paths)
    if isinstance(value, tuple | list):
        return [plain(one, paths) for one in value]
    if isinstance(value, dict):
        return {key: plain(one, paths) for key, one in value.items()}
    return str(value) if isinstance(value, Path) else value


def _fields(spec: BaseModel, paths: bool) -> dict[str, Any]:
    return {key: plain(one, paths) for key, one in spec if paths or not isinstance(one, Path)}
