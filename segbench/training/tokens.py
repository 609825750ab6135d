"""The words of the tiny models, their tokenizer and their processor."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from segbench.data.scenes import WORDS

# CLIP pools the text at </s>; with id 2 transformers would pool at the largest id instead, as CLIP's first release did.
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>")
PAD, BOS, _, EOS, IMAGE = range(len(SPECIAL))
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def ids(text: str) -> list[int]:
    """Token ids of blank-separated words, without <s>."""
    return [VOCABULARY[word] for word in text.split()]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, `<s>` in front: no attention row of any prompt is ever empty."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
    )


def processor(size: int, patch: int) -> LlavaProcessor:
    """Picture and text "<image> r3 c9" -> pixel_values of size x size, input_ids with (size/patch)^2 image tokens."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, which the strategy takes away again
        image_token="<image>",  # noqa: S106
    )


def pixels(images: UInt8[np.ndarray, "b H W 3"]) -> Float[Tensor, "b 3 H W"]:
    """What the processor makes of images that already have the model's size, for a whole batch at once."""
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(torch.float32, copy=True)
    return values.div_(255.0).sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
