"""Original LLaVA-1.5 checkpoints (haotian-liu/LLaVA and forks with other vision towers) for stock transformers classes.

One thing no stock class can say: forks on DINOv2 with registers cut CLS and registers before the projector, while
transformers cuts CLS alone. `image_registers: dropped` in the new config.json says so; a loader that does not know the
key fails on the number of image tokens rather than run another model than the one that was trained.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BaseImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.utils import is_protobuf_available, is_sentencepiece_available
from transformers.utils import logging as transformers_logging

from segbench.adapters.weights import SETTINGS
from segbench.convert import files
from segbench.convert.original import (
    EMBEDDINGS,
    FIRST,
    HEAD,
    PROJECTOR_FILE,
    SECOND,
    Original,
    find,
    mapped,
    original_name,
    renamed,
)
from segbench.errors import MissingInput, ModelError

Attention = Literal["causal", "bidirectional"]

REPORT = "conversion.json"
IMAGE, PAD = "<image>", "<pad>"
ROWS = 64  # token embeddings grow to a multiple of this, as in the checkpoints of llava-hf
WITH_TEXT = ("clip", "siglip")  # checkpoints of a vision and a text model
TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
WRAPPED = ("clip_vision_model", "siglip_vision_model")  # all tensors lie in `vision_model`, the image size is fixed
WITHOUT_CLS = "siglip_vision_model"
ROPE = ("rope_theta", "rope_scaling")  # older names, which transformers still takes
DECIDED_HERE = ("model_type", "architectures", "transformers_version", "dtype", "vocab_size", "pad_token_id")


def convert(
    source: Path,
    output: Path,
    vision: Path | None = None,
    base: Path | None = None,
    attention: Attention | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the folder `output`, whole or not at all, and return what its conversion.json tells.

    `vision` is the folder of the tower's own checkpoint: its config and image processor are read even where `source`
    holds the tower's weights. `base` is the LLM below a stage-1 projector, `attention` what the model was trained with.
    SpecError if `output` is taken or `base` is of no use; MissingInput for a folder or file that is not there;
    ModelError for a checkpoint that is another model than LLaVA-1.5, or not whole.
    """
    files.refuse_taken(output)
    original = find(source, vision, base)
    tower = _tower(original)
    parts = mapped(original)
    tensors, left_out = renamed(original, parts, tower.model_type in WRAPPED)
    tensors |= _second_matrix(original, tensors, tower)
    tokenizer, images = _tokenizer(original), _image_processor(original, tower)
    text = _text_config(original, tokenizer, tensors[EMBEDDINGS])
    config = _config(original, tower, text, tokenizer.get_vocab()[IMAGE], attention)
    config.image_seq_length = (_side(images) // tower.patch_size) ** 2
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(tower.model_type != WITHOUT_CLS),  # CLS, which the strategy takes away again
        image_token=IMAGE,
    )
    shapes = _shapes(tensors, text.vocab_size)
    _require_whole(shapes, config, original)
    size = sum(one.nbytes for one in shapes.values())
    with files.whole_folder(output, size) as folder:
        say(f"writing {len(shapes)} tensors, {size / 1e9:.2f} GB")
        written = files.write(shapes, lambda name: _grown(tensors[name], shapes[name]), folder)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        _generation(original, text).save_pretrained(folder)
        say("hashing what was read")
        report = {
            "original": {
                key: one for key, one in original.config.items() if key.startswith(("mm_", "image_", "model_"))
            },
            "sources": {part: _digests(folder) for part, folder in original.folders.items()},
            "tensors": {part: len(found) for part, found in parts.items()},
            "left_out": dict(Counter(left_out.values())),
            "token_rows": {"original": len(tensors[EMBEDDINGS]), "now": text.vocab_size},
            "added_tokens": {IMAGE: config.image_token_id, PAD: text.pad_token_id},
            "written": written,
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "safetensors")},
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _tower(original: Original) -> PreTrainedConfig:
    """The vision tower's config, as LLaVA uses the tower."""
    folder = original.vision
    files.read_json(folder / "config.json")
    with _told_of(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = config.vision_config if config.model_type in WITH_TEXT else config
    if config.model_type not in TOWERS:
        raise ModelError(f"{folder} holds a {config.model_type!r}, expected one of {', '.join(TOWERS)}")
    config.name_or_path = ""  # a folder of this machine
    if config.model_type == WITHOUT_CLS:
        config.vision_use_head = False
    elif original.config.get("mm_vision_select_feature", "patch") != "patch":
        raise ModelError(f"{original.source}: mm_vision_select_feature keeps CLS, which has no place in an image")
    return config


def _second_matrix(original: Original, tensors: Mapping[str, Tensor], tower: PreTrainedConfig) -> dict[str, Tensor]:
    """What makes a linear projector one of two matrices: the second changes nothing, to the bit. Empty for an MLP.

    ModelError if the first does not fit the tower or the LLM.
    """
    first = tensors.get(f"{FIRST}weight")
    if first is None:
        raise ModelError(
            f"{original.source} has no projector: {original_name(FIRST, original.projector)}weight is missing"
        )
    expected = [tensors[EMBEDDINGS].shape[1], tower.hidden_size]
    if list(first.shape) != expected:
        raise ModelError(
            f"{original.source}: the projector's first matrix is {list(first.shape)}, but the vision tower of "
            f"{original.vision} and the LLM want {expected}; one of them is not what it was trained with"
        )
    if original.projector != "linear":
        return {}
    return {f"{SECOND}weight": torch.eye(len(first), dtype=first.dtype), f"{SECOND}bias": first.new_zeros(len(first))}


def _tokenizer(original: Original) -> PreTrainedTokenizerBase:
    """The LLM's, with <image>, for which the original has a number outside the vocabulary, and <pad>."""
    folder = original.language
    sentencepiece, ready = folder / "tokenizer.model", (folder / "tokenizer.json").is_file()
    if not ready and not sentencepiece.is_file():
        raise MissingInput(f"{folder} holds no tokenizer (tokenizer.model or tokenizer.json)")
    if not ready and not (is_sentencepiece_available() and is_protobuf_available()):  # transformers would guess
        raise MissingInput(f"{sentencepiece}: two packages are needed to read it; pip install sentencepiece protobuf")
    with _told_of(folder):
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=AutoConfig.for_model(original.family),  # it would look into config.json, and not know the type
            legacy=True,  # a word mark behind <image>, where the original begins to tokenize anew
            local_files_only=True,
            trust_remote_code=False,
        )
    tokenizer.add_tokens(AddedToken(IMAGE, special=True, normalized=False), special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})
    tokenizer.padding_side = "left"
    return tokenizer


def _image_processor(original: Original, tower: PreTrainedConfig) -> BaseImageProcessor:
    """The tower's own, behind padding to a square where the original did that (`expand2square`)."""
    folder = original.vision
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise MissingInput(f"{folder} holds no preprocessor_config.json; it says how images reach the vision tower")
    with _told_of(folder):
        own = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    side = _side(own)
    if tower.model_type in WRAPPED and side != tower.image_size:
        raise ModelError(f"{folder}: images are made {side} pixels wide, but the vision tower takes {tower.image_size}")
    if original.config.get("image_aspect_ratio") != "pad":
        return own
    stated = own.to_dict()
    same = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return LlavaImageProcessorPil(
        **{key: stated[key] for key in same},
        do_pad=True,
        do_center_crop=bool(stated.get("do_center_crop")),
        crop_size={"height": side, "width": side},
    )


def _side(processor: BaseImageProcessor) -> int:
    """Pixels along an edge of the square that the tower sees; ModelError if it is none."""
    stated = processor.to_dict()
    box = (stated["crop_size"] if stated.get("do_center_crop") else stated["size"]) or {}
    edges = {int(edge) for edge in box.values() if edge}
    if len(edges) != 1:
        raise ModelError(f"{type(processor).__name__} makes images of {dict(box)}, expected squares of one size")
    return edges.pop()


def _text_config(
    original: Original, tokenizer: PreTrainedTokenizerBase, embeddings: Float[Tensor, "k d"]
) -> PreTrainedConfig:
    """The LLM's: the original's own keys, and rows for every token."""
    known = {*AutoConfig.for_model(original.family).to_dict(), *ROPE} - {*DECIDED_HERE}
    keys = {key: one for key, one in original.config.items() if key in known and (key not in ROPE or one)}
    numbers, rows = tokenizer.get_vocab(), len(embeddings)
    needed = max(numbers.values()) + 1
    with _told_of(original.source):
        return AutoConfig.for_model(
            original.family,
            **keys,
            vocab_size=rows if needed <= rows else -(-needed // ROWS) * ROWS,
            pad_token_id=numbers[PAD],
            dtype=embeddings.dtype,
        )


def _config(
    original: Original, tower: PreTrainedConfig, text: PreTrainedConfig, image_token: int, attention: Attention | None
) -> LlavaConfig:
    beside: dict[str, Any] = {  # what a configuration keeps without declaring it
        "pad_token_id": text.pad_token_id,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "architectures": [LlavaForConditionalGeneration.__name__],
    }
    if attention:
        beside["image_attention"] = attention
    if tower.to_dict().get("num_register_tokens"):
        beside["image_registers"] = "dropped"
    with _told_of(original.source):
        return LlavaConfig(
            vision_config=tower,
            text_config=text,
            image_token_index=image_token,
            projector_hidden_act="linear" if original.projector == "linear" else "gelu",
            vision_feature_layer=original.config["mm_vision_select_layer"],
            vision_feature_select_strategy="full" if tower.model_type == WITHOUT_CLS else "default",
            tie_word_embeddings=text.tie_word_embeddings,
            dtype=text.dtype,
            **beside,
        )


def _shapes(tensors: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The new checkpoint on the meta device, with `rows` tokens."""
    shapes = {name: one.to("meta") for name, one in tensors.items()}
    grown = {name: shapes[name] for name in (EMBEDDINGS, HEAD) if name in shapes}
    return shapes | {name: one.new_empty(rows, *one.shape[1:]) for name, one in grown.items()}


def _grown(one: Tensor, like: Tensor) -> Tensor:
    """A tensor with rows for the added tokens, the mean of the others: nothing is known of them."""
    if one.shape == like.shape:
        return one.contiguous()
    mean = one.mean(0, keepdim=True, dtype=torch.float32).to(one.dtype)
    return torch.cat([one, mean.expand(len(like) - len(one), -1)])


def _require_whole(shapes: Mapping[str, Tensor], config: LlavaConfig, original: Original) -> None:
    """ModelError unless these are the tensors of such a model, no more and no less: transformers itself compares."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # it is told below
    transformers_logging.disable_progress_bar()
    try:
        with _told_of(original.source):
            loaded: Any = LlavaForConditionalGeneration.from_pretrained(
                None,
                config=config,
                state_dict=dict(shapes),
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
    keys = {
        "missing": loaded[1]["missing_keys"],
        "that such a model does not have": loaded[1]["unexpected_keys"],
        "of another shape": [entry[0] for entry in loaded[1]["mismatched_keys"]],
    }
    wrong = {what: sorted(original_name(key, original.projector) for key in found) for what, found in keys.items()}
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what} ({files.listed(names)})" for what, names in wrong.items() if names)
        where = ", ".join(map(str, original.folders.values()))
        raise ModelError(f"{where}: the tensors do not fit the config: {told}")


def _generation(original: Original, text: PreTrainedConfig) -> GenerationConfig:
    """Where an answer begins and ends; the original's settings for sampling are left out, as transformers refuses them
    without sampling."""
    path = original.language / "generation_config.json"
    stated = files.read_json(path) if path.is_file() else {}
    return GenerationConfig(
        bos_token_id=stated.get("bos_token_id", text.bos_token_id),
        eos_token_id=stated.get("eos_token_id", text.eos_token_id),
        pad_token_id=text.pad_token_id,
    )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder that may have been read."""
    settings = [folder / name for name in (*SETTINGS, PROJECTOR_FILE)]
    found = [path for path in (*settings, *files.weight_files(folder)) if path.is_file()]
    return {path.name: files.sha256(path) for path in sorted(found)}


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """What transformers has against a folder's files, as a ModelError."""
    try:
        yield
    except (StrictDataclassError, ImportError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} cannot be read: {error}") from error
