"""What `segbench train` reads: one YAML recipe per model, which counts steps and never seconds."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from segbench import strict_yaml
from segbench.data.scenes import HELD_OUT, WORLD_VERSION
from segbench.errors import MissingInput
from segbench.specs import Spec, bound


class Schedule(Spec):
    """AdamW without weight decay, 3 % warm-up, then a cosine to zero (LLaVA-1.5; paper A.1)."""

    steps: int = Field(ge=0)  # 0 leaves the part as it was initialised
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)


class Encoder(Schedule):
    """A CLIP vision tower, trained with CLIP's loss on images and their captions."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    feedforward: int = 256
    patch: int = 8  # pixels
    size: int = 96  # pixels
    features: tuple[int, ...] = (-3, -2)  # hidden states that the adapter gets, concatenated
    text_width: int = 128
    text_layers: int = 2
    projection: int = 128
    drop: float = 0.4  # probability with which a caption leaves a word out


class Language(Schedule):
    """A Llama, trained on text alone: facts about cells of unseen pictures, then questions about those facts."""

    width: int = 128
    layers: int = 8
    heads: int = 4
    feedforward: int = 256
    facts: int = 20
    questions: int = 16


class Stage(Schedule):
    """One stage of visual instruction tuning. All questions of an image share its tokens and do not see each other."""

    positions: int = 24  # questions per image for the class of a cell
    closed: int = 4  # questions per image whether a class is there; their answers are ended by </s>
    balanced: float = 0.5  # fraction of the position questions that draw the class first
    adapter_learning_rate: float | None = None  # the adapter's own rate where it is not `learning_rate`


class Recipe(Spec):
    """Everything that decides the weights of one model, except the versions of the libraries and the machine."""

    name: str
    seed: int = 0
    scenes: int = Field(ge=1, le=HELD_OUT)  # pictures of the world 0 that training sees
    threads: int = Field(2, ge=1)
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights and optimiser are float32
    image_attention: Literal["causal", "bidirectional"]  # among the image tokens in both stages (paper Eq. 2)
    encoder: Encoder
    language: Language
    alignment: Stage  # stage 1: the adapter alone
    instruction: Stage  # stage 2: adapter and LLM

    def digest(self, *sections: str) -> str:
        """Identity of what the named sections make, for reuse between recipes that share them."""
        fields = self.model_dump(mode="json", include={"seed", "scenes", "threads", "precision", *sections})
        return hashlib.sha256(json.dumps([WORLD_VERSION, fields], sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> Recipe:
    """The recipe of a YAML file; MissingInput if there is none, SpecError tells all that is wrong."""
    if not path.is_file():
        raise MissingInput(f"{path}: no such recipe; those of the reference models are models/*/recipe.yaml")
    document = strict_yaml.load(path)
    return bound(Recipe, document.value, document, {"folder": path.parent})
