"""A converted checkpoint says to an image and a prompt what the original says, and nothing else is converted."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import original_llava
import pytest
import torch
from original_llava import LAYOUTS, PROMPT, REGISTERS, TOWERS, WORDS, Made
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ViTConfig,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from segbench.adapters import base
from segbench.adapters.base import ENCODER, FINAL
from segbench.convert import files
from segbench.convert.llava import convert
from segbench.errors import MissingInput, ModelError, SegbenchError, SpecError
from segbench.specs import ModelSpec
from segbench.types import Sample

SIZES = [(48, 48), (90, 61), (50, 101)]  # W x H; odd rests are padded unevenly


def image(size: tuple[int, int] = (90, 61)) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), np.uint8))


def load(folder: Path) -> LlavaForConditionalGeneration:
    """The stock model, with all of its tensors and no other."""
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    return model.eval()


def processor(folder: Path) -> Any:
    """The processor, with the image backend that is the same on every machine."""
    found = LlavaProcessor.from_pretrained(folder)
    found.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return found


@contextlib.contextmanager
def registers_dropped(model: LlavaForConditionalGeneration):
    """What `image_registers: dropped` asks of a loader."""

    hook = None
    if model.config.to_dict().get("image_registers") == "dropped":
        projector = model.model.multi_modal_projector
        hook = projector.register_forward_pre_hook(lambda _, args: (args[0][:, REGISTERS:],))
    yield
    if hook:
        hook.remove()


@torch.no_grad()
def same_answer(made: Made, folder: Path) -> None:
    """Pixels, tokens and logits of the converted model are the original's, to the bit."""
    given = processor(folder)(text=[PROMPT], images=[image()], return_tensors="pt")
    ids = made.ids(PROMPT)
    model = load(folder)
    number, patches = model.config.image_token_id, 36
    assert given["input_ids"].tolist() == [[*ids[0], *[number] * patches, *ids[1]]]
    assert torch.equal(given["pixel_values"], made.pixels(image()))
    with registers_dropped(model):
        logits = model(**given).logits
    original = made.logits(made.pixels(image()), ids)
    assert float(original.std()) > 0.1
    assert torch.equal(logits[..., : original.shape[-1]], original)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_the_converted_model_answers_as_the_original_to_the_bit(tmp_path, tower, layout):
    made = original_llava.write(tmp_path, tower, layout)
    convert(made.source, tmp_path / "out", made.vision, made.base)
    same_answer(made, tmp_path / "out")


@pytest.mark.parametrize(
    "config",
    [
        {"mm_projector_type": "linear"},
        {"family": "mistral", "sliding_window": None},
        {"tie_word_embeddings": True},
        {"image_aspect_ratio": "square"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"mm_vision_select_feature": "patch", "model_type": "llava"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_configs_differ_in_is_kept_to_the_bit(tmp_path, config):
    made = original_llava.write(tmp_path, "clip", "tower inside", **config)
    convert(made.source, tmp_path / "out", made.vision)
    same_answer(made, tmp_path / "out")


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_written_processor_makes_the_originals_pixels(tmp_path, tower, aspect):
    made = original_llava.write(tmp_path, tower, image_aspect_ratio=aspect)
    convert(made.source, tmp_path / "out", made.vision)
    images = processor(tmp_path / "out").image_processor
    for size in SIZES:
        assert torch.equal(images(images=image(size), return_tensors="pt")["pixel_values"], made.pixels(image(size)))


def same_tokens(folder: Path, prompt: str, ids: list[list[int]]) -> None:
    number = json.loads((folder / "conversion.json").read_text())["added_tokens"]["<image>"]
    given = processor(folder)(text=[prompt], images=[image()])["input_ids"][0]
    assert given == [*ids[0], *[number] * 36, *ids[1]], prompt


PROMPTS = ("USER: <image>\nwhat is this ASSISTANT:", "<image>\na cat", "a red cat USER:<image>red")


@pytest.mark.parametrize("legacy", [False, True])
def test_words_around_an_image_are_tokenized_apart_as_the_original_does(tmp_path, legacy):
    """A Llama tokenizer marks where a word begins, and behind <image> the original begins anew."""
    made = original_llava.write(tmp_path)
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<0x0A>"]
    words.train_from_iterator(
        ["USER: what is this a red cat ASSISTANT:"] * 5, trainers.BpeTrainer(vocab_size=90, special_tokens=special)
    )
    trained = json.loads(words.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    own = LlamaTokenizer(trained["vocab"], merges, legacy=legacy, add_bos_token=True, pad_token="<unk>")  # noqa: S106
    own.save_pretrained(made.source)
    convert(made.source, tmp_path / "out", made.vision)
    for prompt in PROMPTS:
        same_tokens(
            tmp_path / "out", prompt, [own(part).input_ids[n:] for n, part in enumerate(prompt.split("<image>"))]
        )


def test_a_tokenizer_of_sentencepiece_becomes_one_that_needs_it_no_more(tmp_path):
    """As released checkpoints have it: tokenizer.model alone, and a tokenizer_config.json of older transformers."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs sentencepiece and protobuf")
    made = original_llava.write(tmp_path)
    for path in made.source.glob("tokenizer*"):
        path.unlink()
    (tmp_path / "text").write_text("USER: what is this a red cat ASSISTANT:\na cat is red what a cat\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(made.source / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    stated = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    stated |= {"add_bos_token": True, "add_eos_token": False, "legacy": False, "pad_token": None}
    (made.source / "tokenizer_config.json").write_text(json.dumps(stated))
    convert(made.source, tmp_path / "out", made.vision)
    assert not (tmp_path / "out/tokenizer.model").exists()
    own = sentencepiece.SentencePieceProcessor(model_file=str(made.source / "tokenizer.model"))
    for prompt in PROMPTS:
        before, after = prompt.split("<image>")
        same_tokens(tmp_path / "out", prompt, [[1, *own.encode(before)], own.encode(after)])


def adapter(folder: Path) -> base.Adapter:
    card = ModelSpec(name="converted", adapter="llava", weights=folder, prompt=PROMPT, preprocess="native")
    return base.load(card, "cpu")


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_segbench_reads_the_converted_model_and_its_selftests_pass(tmp_path, tower):
    made = original_llava.write(tmp_path, tower)
    convert(made.source, tmp_path / "out", made.vision)
    found = adapter(tmp_path / "out")
    assert found.selftests["leak"] == 0 < found.selftests["effect"]
    read = found.read(found.prepare([Sample("", image(), np.zeros((61, 90), np.uint8))]), [ENCODER, FINAL])
    features = made.features(made.pixels(image()))
    assert torch.equal(read[ENCODER], features)
    before = torch.tensor([made.ids(PROMPT)[0]])
    words = made.language.get_input_embeddings()(before)
    states = made.language.model(inputs_embeds=torch.cat([words, made.projector(features)], 1)).last_hidden_state
    assert torch.equal(read[FINAL], states[:, before.shape[1] :])


def test_registers_are_declared_as_dropped_and_a_stock_loader_does_not_run_another_model(tmp_path):
    made = original_llava.write(tmp_path, "dinov2-registers")
    convert(made.source, tmp_path / "out", made.vision)
    written = (tmp_path / "out/config.json").read_text()
    assert json.loads(written)["image_registers"] == "dropped"
    assert str(tmp_path) not in written
    given = processor(tmp_path / "out")(text=[PROMPT], images=[image()], return_tensors="pt")
    with pytest.raises(ValueError, match=r"(?i)image features and image tokens do not match"):
        load(tmp_path / "out")(**given)


def test_the_attention_of_the_training_is_written_down(tmp_path):
    made = original_llava.write(tmp_path)
    convert(made.source, tmp_path / "unsaid", made.vision)
    convert(made.source, tmp_path / "out", made.vision, attention="bidirectional")
    assert "image_attention" not in json.loads((tmp_path / "unsaid/config.json").read_text())
    with pytest.raises(ModelError, match="trained with bidirectional image attention"):
        adapter(tmp_path / "out")


def test_tokens_that_a_fork_added_keep_their_rows(tmp_path):
    """With <im_start> the LLM has a row that a tokenizer of the LLM alone would give to <image>."""
    made = original_llava.write(tmp_path)
    tokenizer = original_llava.tokenizer()
    tokenizer.add_tokens(["<im_start>"], special_tokens=True)
    tokenizer.save_pretrained(made.source)
    convert(made.source, tmp_path / "out", made.vision)
    report = json.loads((tmp_path / "out/conversion.json").read_text())
    assert report["added_tokens"] == {"<image>": len(WORDS) + 1, "<pad>": len(WORDS) + 2}


def test_rows_that_are_there_already_are_not_added_again(tmp_path):
    made = original_llava.write(tmp_path)
    for path in made.source.glob("*.safetensors"):
        rows = {n: torch.cat([t, t[:5]]) if len(t) == len(WORDS) else t for n, t in load_file(path).items()}
        save_file(rows, path, {"format": "pt"})
    report = convert(made.source, tmp_path / "out", made.vision)
    assert report["token_rows"] == {"original": len(WORDS) + 5, "now": len(WORDS) + 5}
    assert load(tmp_path / "out").lm_head.out_features == len(WORDS) + 5


def test_precision_is_the_originals(tmp_path):
    made = original_llava.write(tmp_path)
    for path in made.source.glob("*.safetensors"):
        save_file({name: one.half() for name, one in load_file(path).items()}, path, {"format": "pt"})
    convert(made.source, tmp_path / "out", made.vision)
    written = load_file(tmp_path / "out/model.safetensors")
    assert written["language_model.model.norm.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"


def test_large_weights_are_sharded_with_an_index(tmp_path, monkeypatch):
    made = original_llava.write(tmp_path)
    monkeypatch.setattr(files, "LARGEST_FILE", 100_000)
    report = convert(made.source, tmp_path / "out", made.vision)
    assert len(report["written"]) > 3
    assert all((tmp_path / "out" / name).stat().st_size < 120_000 for name in report["written"])
    same_answer(made, tmp_path / "out")


def test_the_report_tells_what_came_from_where(tmp_path):
    made = original_llava.write(tmp_path, "clip", "stage 1")
    report = convert(made.source, tmp_path / "out", made.vision, made.base)
    assert report == json.loads((tmp_path / "out/conversion.json").read_text())
    assert set(report["sources"]) == {"source", "language", "vision"}
    assert report["sources"]["source"]["mm_projector.bin"] == files.sha256(made.source / "mm_projector.bin")
    assert report["sources"]["vision"]["pytorch_model.bin"] == files.sha256(made.vision / "pytorch_model.bin")
    vision = len(torch.load(made.vision / "pytorch_model.bin"))
    assert report["tensors"] == {"language": len(made.language.state_dict()), "projector": 4, "vision": vision}
    written = len(load_file(tmp_path / "out/model.safetensors"))
    assert sum(report["tensors"].values()) == sum(report["left_out"].values()) + written
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_a_tower_in_the_cache_of_the_hub_is_found_by_the_name_in_the_config(tmp_path, monkeypatch):
    made = original_llava.write(tmp_path / "made")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--published--clip"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    shutil.copytree(made.vision, place / "snapshots" / ("0" * 40))
    convert(made.source, tmp_path / "out")
    same_answer(made, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def made(tmp_path) -> Made:
    return original_llava.write(tmp_path)


def refused(made: Made, error: type[SegbenchError], told: str, **arguments) -> None:
    """Told in a sentence, and nothing is left."""
    output = made.source.parent / "out"
    with pytest.raises(error, match=told) as caught:
        convert(made.source, output, **{"vision": made.vision, "base": made.base, **arguments})
    assert type(caught.value) is error
    assert sorted(path.name for path in output.parent.iterdir() if path.name not in ("source", "tower", "base")) == []


def rewrite(folder: Path, **config) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def retensor(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Other tensors in one file; None removes one."""
    whole = {**original_llava.read_shards(folder), **{name.replace("__", "."): one for name, one in tensors.items()}}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file({name: one.contiguous() for name, one in whole.items() if one is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type is 'mlp3x_gelu', expected one of mlp2x_gelu, linear"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type is 'spatial_unpad', expected 'flat'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres', expected 'pad' or 'square'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature keeps CLS"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature is 'all', expected 'patch'"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer is None, expected a whole number"),
        ({"s2": True}, "s2 is on"),
        ({"model_type": "llava_mpt"}, "model_type is 'llava_mpt', expected one of llava, llava_llama, llava_mistral"),
        ({"mm_vision_tower": None}, "names no mm_vision_tower; a checkpoint in transformers' own format needs no"),
        ({"unfreeze_mm_vision_tower": True}, "its vision tower was trained, yet the weights are not with it"),
        ({"hidden_act": "abracadabra"}, "abracadabra"),
        ({"num_attention_heads": "many"}, "num_attention_heads"),
        ({"num_hidden_layers": 4}, r"9 missing \(model\.layers\.3\.input_layernorm\.weight, .* and 4 more\)"),
        ({"intermediate_size": 97}, r"9 of another shape \(model\.layers\.0\.mlp\.down_proj\.weight"),
        ({"tie_word_embeddings": True}, "ties lm_head to the token embeddings, yet they differ"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_another_model_is_refused(made, config, told):
    rewrite(made.source, **config)
    refused(made, ModelError, told)


def test_tensors_that_the_model_does_not_have_are_named(made):
    retensor(made.source, model__mm_resampler__weight=torch.ones(1))
    refused(made, ModelError, r"LLaVA-1\.5 has no model\.mm_resampler\.weight")
    retensor(made.source, model__mm_resampler__weight=None, model__layers__0__self_attn__gate__weight=torch.ones(1))
    refused(made, ModelError, r"1 that such a model does not have \(model\.layers\.0\.self_attn\.gate\.weight\)")


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.up_proj.weight", "model.mm_projector.2.bias", "lm_head.weight", "model.norm.weight"],
)
def test_tensors_that_are_missing_are_named_as_the_original_names_them(made, name):
    retensor(made.source, **{name: None})
    refused(made, ModelError, rf"1 missing \({name}\)".replace(".", r"\."))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.mm_projector.0.weight"])
def test_without_embeddings_or_projector_nothing_is_converted(made, name):
    retensor(made.source, **{name: None})
    refused(made, ModelError, f"{name} is missing".replace(".", r"\."))


def test_a_tower_of_another_width_does_not_fit_the_projector(made):
    shutil.rmtree(made.vision)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    CLIPVisionModel(config).save_pretrained(made.vision)
    refused(made, ModelError, r"the projector's first matrix is \[48, 32\], but .* want \[48, 16\]")


def test_a_tower_of_another_kind_is_refused(made):
    ViTConfig().save_pretrained(made.vision)
    refused(made, ModelError, "holds a 'vit', expected one of clip_vision_model, siglip_vision_model, dinov2")


def test_a_tower_that_lost_a_layer_is_refused(made):
    """As in LLaVA-NeXT, which cuts the last one off and reads the last but one of what is left."""
    tensors = torch.load(made.vision / "pytorch_model.bin")
    kept = {name: one for name, one in tensors.items() if "vision_model.encoder.layers.3." not in name}
    torch.save(kept, made.vision / "pytorch_model.bin")
    refused(made, ModelError, r"16 missing \(model\.vision_tower\.vision_tower\..*layers\.3\.")


def test_a_tower_that_takes_images_of_another_size_is_refused(made):
    path = made.vision / "preprocessor_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "crop_size": {"height": 56, "width": 56}}))
    refused(made, ModelError, "images are made 56 pixels wide, but the vision tower takes 48")
    path.write_text(json.dumps({**content, "crop_size": {"height": 48, "width": 56}}))
    refused(made, ModelError, "expected squares of one size")


@pytest.mark.parametrize("name", ["adapter_config.json", "non_lora_trainables.bin"])
def test_a_part_of_lora_training_is_refused(made, name):
    (made.source / name).write_text("{}")
    refused(made, ModelError, f"{name} is a part of LoRA training; merge it into its base model first")


def test_what_is_not_there_is_told_with_what_to_do(made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.source))
    refused(made, MissingInput, "the vision tower 'published/clip'; name its folder with --vision", vision=None)
    rewrite(made.source, mm_vision_tower=str(made.vision))  # somebody's path is not followed
    refused(made, MissingInput, "name its folder with --vision", vision=None)
    refused(made, MissingInput, "holds no config.json", vision=made.source.parent)
    (made.vision / "pytorch_model.bin").unlink()
    refused(made, MissingInput, "tower holds no weights")
    (made.vision / "preprocessor_config.json").unlink()
    refused(made, MissingInput, "holds no weights", vision=made.vision)
    (made.source / "model-00002-of-00002.safetensors").unlink()
    refused(made, MissingInput, r"model-00002-of-00002\.safetensors is named in model\.safetensors\.index\.json")
    (made.source / "model-00001-of-00002.safetensors").unlink()
    refused(made, MissingInput, "holds neither weights .* nor mm_projector.bin")
    (made.source / "config.json").unlink()
    refused(made, MissingInput, "holds no config.json")


def test_an_image_processor_is_needed(made):
    (made.vision / "preprocessor_config.json").unlink()
    refused(made, MissingInput, "holds no preprocessor_config.json")


def test_a_tokenizer_is_needed_and_one_of_sentencepiece_needs_its_packages(made, monkeypatch):
    for path in made.source.glob("tokenizer*"):
        path.unlink()
    refused(made, MissingInput, "holds no tokenizer")
    (made.source / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("segbench.convert.llava.is_sentencepiece_available", lambda: False)
    refused(made, MissingInput, "pip install sentencepiece protobuf")


def test_stage_1_needs_the_llm_below_it_and_nothing_else(tmp_path):
    made = original_llava.write(tmp_path, "clip", "stage 1")
    refused(made, MissingInput, "holds a projector alone; name the folder of the LLM below it with --base", base=None)
    whole = original_llava.write(tmp_path / "base/whole").source
    refused(made, ModelError, "is a LLaVA itself; name the folder of the LLM alone", base=whole)
    shutil.rmtree(whole.parent)
    tensors = torch.load(made.source / "mm_projector.bin")
    torch.save({**tensors, "model.embed_tokens.weight": torch.ones(2)}, made.source / "mm_projector.bin")
    refused(made, ModelError, r"mm_projector\.bin: model\.embed_tokens\.weight is no projector's")


def test_another_llm_than_the_projectors_is_refused(tmp_path):
    made = original_llava.write(tmp_path, "clip", "stage 1")
    assert made.base
    shutil.rmtree(made.base)
    small = AutoConfig.for_model("llama", hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=11)
    AutoModelForCausalLM.from_config(small).save_pretrained(made.base)
    refused(made, ModelError, r"the projector's first matrix is \[48, 32\], but .* want \[24, 32\]")


def test_a_whole_checkpoint_has_no_base(made):
    refused(made, SpecError, "--base: .* holds an LLM itself", base=made.vision)


def test_an_output_that_is_taken_is_left_alone(made):
    taken = made.source.parent / "base"
    taken.mkdir()
    convert(made.source, taken, made.vision)  # an empty folder is as good as none
    before = {path: path.read_bytes() for path in taken.iterdir()}
    with pytest.raises(SpecError, match=r"--output: .* is there already and not an empty folder"):
        convert(made.source, taken, made.vision)
    with pytest.raises(SpecError, match="is there already"):
        convert(made.source, made.source / "config.json", made.vision)
    assert {path: path.read_bytes() for path in taken.iterdir()} == before


def test_a_conversion_that_breaks_leaves_nothing(made, monkeypatch):
    monkeypatch.setattr(files, "sha256", lambda path: 1 / 0)  # the last thing that is done
    with pytest.raises(ZeroDivisionError):
        convert(made.source, made.source.parent / "out", made.vision)
    assert sorted(path.name for path in made.source.parent.iterdir()) == ["source", "tower"]
