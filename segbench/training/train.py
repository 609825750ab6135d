"""From a recipe to a folder that `LlavaForConditionalGeneration.from_pretrained` loads."""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from segbench.data.scenes import WORLD_VERSION
from segbench.errors import ModelError
from segbench.training import answers, encoder, language, llava, tokens
from segbench.training.fit import Curve
from segbench.training.pool import held_out, pool
from segbench.training.recipe import read

HELD_OUT_IMAGES = 200


def train(
    recipe_path: Path,
    output: Path,
    progress: Callable[[str], None],
    work: Path | None = None,
    images: int = HELD_OUT_IMAGES,
) -> Path:
    """Train the model of a recipe and write its checkpoint, recipe.yaml and training.json to `output`.

    What several recipes share (drawn scenes, vision encoder, text-only LLM) is kept in `work`, by default beside
    `output`. `images` pictures that no training sees measure how well it answers. Raises SpecError for a wrong recipe
    and ModelError if what was written does not load whole.
    """
    recipe = read(recipe_path)
    work = work or output.parent / "training-work"
    scratch = work / "scratch"
    torch.set_num_threads(recipe.threads)
    curves: dict[str, Curve] = {}
    seconds: dict[str, float] = {}

    def timed(name: str) -> Callable[[str], None]:
        start = time.monotonic()

        def report(line: str) -> None:
            seconds[name] = round(time.monotonic() - start, 1)
            progress(f"{recipe.name} {name}: {line} ({seconds[name]:.0f} s)")

        return report

    seen = pool(work, recipe.scenes, recipe.encoder.size, recipe.threads, timed("scenes"))
    eyes = encoder.build(recipe.encoder, recipe.seed)
    curves["encoder"] = _once(
        work / f"encoder-{recipe.digest('encoder')}",
        eyes,
        lambda: encoder.train(recipe, seen, timed("encoder"), scratch),
    )
    words = language.build(recipe.language, recipe.seed)
    curves["language"] = _once(
        work / f"language-{recipe.digest('language')}",
        words,
        lambda: language.train(recipe, seen, timed("language"), scratch),
    )
    model = llava.assemble(recipe, eyes, words)
    curves["alignment"] = llava.align(model, recipe, seen, timed("alignment"), scratch)
    curves["instruction"] = llava.instruct(model, recipe, seen, timed("instruction"), scratch)
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)
    tokens.processor(recipe.encoder.size, recipe.encoder.patch).save_pretrained(output)
    if not (output / "recipe.yaml").exists() or not (output / "recipe.yaml").samefile(recipe_path):
        shutil.copyfile(recipe_path, output / "recipe.yaml")
    loaded = _load_whole(output)
    measured = answers.measure(loaded, held_out(images, recipe.encoder.size))
    for row in measured:
        progress(f"{recipe.name} held-out {row.kind} questions: {row.accuracy:.3f} (chance {row.chance:.3f})")
    report = {
        "name": recipe.name,
        "recipe": recipe.model_dump(mode="json"),
        "world_version": WORLD_VERSION,
        "parameters": sum(p.numel() for p in loaded.parameters()),
        "held_out_answers": [asdict(row) for row in measured],
        **{f"{stage}_curve": curve for stage, curve in curves.items()},
        "seconds": seconds,
        "versions": {
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (output / "training.json").write_text(_readable(report), encoding="utf-8")
    return output


def _once(stem: Path, model: nn.Module, make: Callable[[], tuple[nn.Module, Curve]]) -> Curve:
    """Fill `model` with the weights kept under `stem`, training them first if there are none; returns their curve."""
    weights, curve = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    if not (weights.exists() and curve.exists()):
        trained, points = make()
        part = stem.with_suffix(f".{os.getpid()}.part")
        save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, part)
        curve.write_text(json.dumps(points), encoding="utf-8")
        os.replace(part, weights)
    model.load_state_dict(load_file(weights))
    return json.loads(curve.read_text(encoding="utf-8"))


def _load_whole(folder: Path) -> transformers.LlavaForConditionalGeneration:
    """The checkpoint as a user loads it; ModelError if a weight is missing or left over."""
    loaded: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    model, told = loaded
    wrong = {kind: sorted(told[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[kind]}
    if wrong:
        raise ModelError(f"{folder}: the written checkpoint does not load whole: {wrong}")
    return model.eval()


def _readable(report: dict[str, object]) -> str:
    """JSON with one line per key."""
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in report.items()) + "\n}\n"
