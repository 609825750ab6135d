"""A model card: models/*.yaml, and what the command line replaces in one."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from segbench import registry
from segbench.errors import SpecError
from segbench.specs.base import Spec, checked_name
from segbench.specs.mistakes import bound, named
from segbench.strict_yaml import Document


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
        return checked_name(value)

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


def read_model(document: Document, path: Path, overrides: Mapping[str, Any] | None = None) -> ModelSpec:
    """The model card of a YAML file. `overrides` replace fields, paths in them meant from the current folder, and are
    appended to the name, as they make another model. SpecError tells everything that is wrong."""
    keys = named(document, path.stem)
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
