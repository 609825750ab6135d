"""What a probe cell will take under every feature policy, told before any model is loaded."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from segbench.errors import SpecError
from segbench.specs import DataSpec, ModelSpec
from segbench.store import PROVENANCE, folder_name
from segbench.types import Site

if TYPE_CHECKING:
    from segbench.features.estimate import Costs

PLAIN = ("llava", "llava_next", "llava_onevision", "deepseek_vl")  # one image token per patch of the vision tower
PROMPT = 40  # tokens beside those of the image, at most, in the prompts of the model cards
LABEL = 3  # bytes of a pixel's label and of whether it counts


def recorded(root: Path, model: ModelSpec) -> Iterator[tuple["Costs", str]]:
    """What earlier cells of a model measured on this store, the latest first, and why the model cannot step, if so."""
    from segbench.features.estimate import Costs

    found = [path for path in (root / folder_name(model.name)).glob(f"*/*/{PROVENANCE}") if path.is_file()]
    for path in sorted(found, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        try:
            facts = json.loads(path.read_bytes())["features"]
            yield Costs.of(facts["costs"]), str(facts["refused"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecError):
            continue  # of another kind, or of an older version


def configured(model: ModelSpec, data: DataSpec) -> "Costs | None":
    """Bytes as far as a checkpoint's config tells them; None for a family that counts its image tokens otherwise."""
    from transformers import AutoConfig

    from segbench.adapters import weights
    from segbench.features.estimate import ENCODER, Costs

    if weights.missing(model) or model.view != "base":
        return None
    try:
        config = AutoConfig.from_pretrained(weights.folder(model), local_files_only=True)
    except (OSError, ValueError, KeyError):  # what transformers says of a config that it does not know
        return None
    if config.model_type not in PLAIN:
        return None
    text, vision = config.get_text_config().to_dict(), config.to_dict()["vision_config"]
    side = model.resolution or vision["image_size"]
    tokens, size = (side // vision["patch_size"]) ** 2, 4 if model.dtype == "float32" else 2
    state = text["hidden_size"] * size
    layers = [Site("llm", layer) for layer in (*range(1, text["num_hidden_layers"] + 1), "norm")]
    sites = {site: int(tokens * state) for site in (ENCODER, Site("adapter"), *layers)}
    sites[ENCODER] = int(tokens * vision["hidden_size"] * size)
    val = data.load("val")
    labels = LABEL * val[0].mask.size + 4 * tokens * len(val.classes)  # and what a loss keeps per patch and class
    return Costs(sites, (tokens + PROMPT) * state, labels)
