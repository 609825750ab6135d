"""Every tiny checkpoint is whole, is read by the stock classes, and its picture reaches its LLM."""

import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
import transformers
from PIL import Image
from tiny_families import FAMILIES
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BatchFeature
from transformers.models.gemma4 import image_processing_pil_gemma4
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.smolvlm import processing_smolvlm

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": tiny_families.QUESTION}]}]
PICTURES = (
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)),
    Image.new("RGB", (96, 72), (200, 30, 90)),
)


@pytest.fixture(scope="module", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, tiny_families.write(request.param, tmp_path_factory.mktemp(request.param))


def test_family_is_read_whole_by_the_stock_class_and_sees_its_picture(written: tuple[str, Path]) -> None:
    name, folder = written
    kind = AutoConfig.from_pretrained(folder).model_type
    assert name == kind or name.startswith(f"{kind}-")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not {kind: keys for kind, keys in report.items() if keys}
    assert all(parameter.any() for parameter in model.parameters() if parameter.numel() == 1), "a gate is shut"
    first, second = (processed(folder, picture, FAMILIES[name].image) for picture in PICTURES)
    assert torch.equal(first["input_ids"], second["input_ids"])
    with torch.no_grad():
        logits, others = model(**first).logits[0, -1], model(**second).logits[0, -1]
    assert torch.isfinite(logits).all()
    assert (logits - others).abs().max() > 1e-3  # another picture of the same size says something else


def test_checkpoint_has_the_files_of_a_real_one(written: tuple[str, Path]) -> None:
    name, folder = written
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"}
    assert files >= {"tokenizer.json", "tokenizer_config.json"}
    assert ("chat_template.jinja" in files) == (FAMILIES[name].template is not None)
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    assert not kind.endswith(("Pil", "Fast")), "a real checkpoint names no back end"
    assert FAMILIES[name].prompt.count("<image>") == 1


def test_seed_decides_every_weight_and_config_reaches_the_checkpoint(tmp_path: Path) -> None:
    def weights(folder: str, **how: Any) -> bytes:
        return (tiny_families.write("llava", tmp_path / folder, **how) / "model.safetensors").read_bytes()

    first = weights("first")
    torch.rand(3)  # what else was drawn before does not matter
    assert weights("again") == first
    assert weights("other", seed=1) != first
    tiny_families.write("llava", tmp_path / "last", vision_feature_layer=-1)
    assert AutoConfig.from_pretrained(tmp_path / "last").vision_feature_layer == -1


@pytest.mark.parametrize("name", [*FAMILIES, *tiny_families.ABSENT])
def test_family_is_left_out_only_where_transformers_does_not_have_it(name: str) -> None:
    assert (name in FAMILIES) == (name in CONFIG_MAPPING or name.rpartition("-")[0] in CONFIG_MAPPING)


def processed(folder: Path, picture: Image.Image, image: str = "<image>") -> BatchFeature:
    """What the family's processor makes of the chat, or without one of the question, and the picture."""
    processor = processor_of(folder)
    if processor.tokenizer.chat_template:
        text = processor.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    else:
        text = image + tiny_families.QUESTION
    return processor(text=[text], images=[picture], return_tensors="pt")


def processor_of(folder: Path) -> Any:
    """The real processor, its other senses left out: video needs torchvision."""
    images = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    own = json.loads((folder / "processor_config.json").read_text())
    processor = stock(own.pop("processor_class"))
    # Without torchvision transformers cannot even name the class that it wants a video processor to be of.
    unchecked = {"check_argument_for_proper_class": lambda self, name, part: None}
    lenient: Any = type(processor.__name__, (processor,), unchecked)
    parts = {
        "image_processor": stock(f"{images}Pil").from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "video_processor": None,
        "feature_extractor": None,  # of sound
    }
    used = {name: part for name, part in parts.items() if name in processor.get_attributes()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing_smolvlm, "num2words", str)  # another package that only videos need
        return lenient(**used, **own)


def stock(name: str) -> Any:
    """A processor's class by its name; without torchvision transformers itself hides some that do not need it."""
    with pytest.MonkeyPatch.context() as patch:
        # These take a function of integers from the torchvision back end; the PIL one has it, too.
        for back_end in (image_processing_pil_pixtral, image_processing_pil_gemma4):
            patch.setitem(sys.modules, back_end.__name__.replace("_pil_", "_"), back_end)
        return getattr(importlib.import_module(_modules()[name]), name)


@cache
def _modules() -> dict[str, str]:
    """Module of every class that transformers has for processing."""
    found: dict[str, str] = {}
    for path in Path(transformers.__file__).parent.glob("models/*/*processing_*.py"):
        names = re.findall(r"^class (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        found |= dict.fromkeys(names, f"transformers.models.{path.parent.name}.{path.stem}")
    return found
