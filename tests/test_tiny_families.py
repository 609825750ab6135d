"""Every tiny checkpoint is whole, is read by the stock classes, and its picture reaches its LLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
import transformers
from PIL import Image
from tiny_families import FAMILIES
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BatchFeature
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # the one above needs torchvision in 5.17

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
    assert AutoConfig.from_pretrained(folder).model_type == name.partition("-")[0]
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not {kind: keys for kind, keys in report.items() if keys}
    first, second = (processed(folder, picture) for picture in PICTURES)
    assert torch.equal(first["input_ids"], second["input_ids"])
    with torch.no_grad():
        logits, others = model(**first).logits[0, -1], model(**second).logits[0, -1]
    assert torch.isfinite(logits).all()
    assert (logits - others).abs().max() > 1e-3  # another picture of the same size says something else


def test_checkpoint_has_the_files_of_a_real_one(written: tuple[str, Path]) -> None:
    name, folder = written
    files = {path.name for path in folder.iterdir()}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"}
    assert files >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    assert not kind.endswith(("Pil", "Fast")), "a real checkpoint names no back end"
    assert FAMILIES[name].prompt.count("<image>") == 1


def test_only_families_of_a_later_transformers_are_left_out() -> None:
    for name in tiny_families.ABSENT:
        with pytest.raises(ValueError, match="Unrecognized"):
            AutoConfig.for_model(name.partition("-")[0])


def processed(folder: Path, picture: Image.Image) -> BatchFeature:
    """What the family's processor makes of the chat, the picture in it."""
    processor = processor_of(folder)
    text = processor.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    return processor(text=[text], images=[picture], return_tensors="pt")


def processor_of(folder: Path) -> Any:
    """The real processor, its video side left out where it has one: that needs torchvision."""
    own = json.loads((folder / "processor_config.json").read_text())
    stock = getattr(transformers, own.pop("processor_class"))
    # Without torchvision transformers cannot even name the class that it wants a video processor to be of.
    unchecked = type(stock.__name__, (stock,), {"check_argument_for_proper_class": lambda self, name, argument: None})
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "video_processor": None,
    }
    used = {name: part for name, part in parts.items() if name in stock.get_attributes()}
    return unchecked(**used, chat_template=(folder / "chat_template.jinja").read_text(), **own)
