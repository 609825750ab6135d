"""Paint a band across an image and see which tokens light up: where patches are, measured rather than believed.

While this is looked at, the blocks of the vision tower are passed by and convolutions see no neighbours, so that no
token hears of another: what is left of the model (processor, patch embedding, merging, window order, projector, packing
into the prompt) is all that can move a patch to another place. Nothing of it is re-implemented here.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from segbench.adapters.embedder import Embedder
from segbench.adapters.layout import Framing, Size

AT_ONCE = 8  # pictures per forward pass

Bands = Sequence[tuple[int, int]]  # first pixel and the one behind the last


class Response(NamedTuple):
    """How much each token changes with each painted band."""

    rows: Float[np.ndarray, "p n"]
    columns: Float[np.ndarray, "q n"]

    def lit(self) -> Bool[np.ndarray, " n"]:
        """The tokens that see anything of the image."""
        return (self.rows.max(0) > 0) & (self.columns.max(0) > 0)

    def centres(self, at: Float[np.ndarray, " p"] | None = None) -> Float[np.ndarray, "2 n"]:
        """Row and column of each token: the middle of the bands that it responds to.

        `at` is where the bands of either axis lie; without it they are counted from the first one's centre.
        """
        return np.stack([_moments(response, at)[0] for response in self])

    def spread(self, at: Float[np.ndarray, " p"] | None = None) -> Float[np.ndarray, "2 n"]:
        """Deviation of the bands that each token responds to from its centre, in the same units."""
        return np.stack([_moments(response, at)[1] for response in self])


@dataclass(frozen=True)
class Light:
    """Of the image tokens in the prompt, and of the rows of every tensor that the projector consumes."""

    tokens: Response
    consumed: tuple[Response, ...]
    shapes: tuple[tuple[int, ...], ...]  # of the consumed tensors, for one picture, without their width


def look(
    embedder: Embedder, framing: Framing, arguments: Mapping[str, Any], image: Size, rows: Bands, columns: Bands
) -> Light:
    """Paint every band of rows and of columns on an image of H x W pixels and run the model up to its LLM."""
    draw = np.random.default_rng(0)
    canvas = draw.integers(0, 256, (*image, 3), dtype=np.uint8)
    painted = [canvas]
    for axis, bands in enumerate((rows, columns)):
        for first, end in bands:
            one = canvas.copy()
            part = one[first:end] if axis == 0 else one[:, first:end]
            part[...] = 255 - part
            painted.append(one)
    tokens: list[Tensor] = []
    consumed: list[list[Tensor]] = []
    shapes: tuple[tuple[int, ...], ...] = ()
    with tokenwise(embedder):
        for start in range(0, len(painted), AT_ONCE):
            pictures = [framing.picture(Image.fromarray(one)) for one in painted[start : start + AT_ONCE]]
            ones = [embedder.inputs(picture, arguments) for picture in pictures]
            inputs = {name: torch.cat([one[name] for one in ones]) for name in ones[0]}
            found = embedder.embed(inputs)
            image_at = (inputs["input_ids"][0] == embedder.parts.image_token_id).nonzero()[:, 0]
            tokens.append(found.call["inputs_embeds"][:, image_at.to(embedder.checkpoint.device)].float().cpu())
            split = [one.float().cpu().flatten(0, -2).unflatten(0, (len(ones), -1)) for one in found.consumed]
            consumed.append(split)
            shapes = tuple((-1, *one.shape[1:-1]) for one in found.consumed)
    responses = [_response(torch.cat(tokens), len(rows))]
    responses += [_response(torch.cat(ones), len(rows)) for ones in zip(*consumed, strict=True)]
    return Light(responses[0], tuple(responses[1:]), shapes)


@contextmanager
def tokenwise(embedder: Embedder) -> Iterator[None]:
    """The model with every block before the LLM passed by: modules in lists that give back what they took, in shape.

    Convolutions whose windows overlap (SAM's neck) keep their middle tap, and see by it the mean of the cell that their
    stride makes. Hooks come first in line, so that those by which transformers collects hidden states see the same.
    """
    text = set(embedder.parts.text.modules())
    lists = [module for module in embedder.parts.outer.modules() if isinstance(module, nn.ModuleList)]
    blocks = {block for one in lists if one not in text for block in one}

    def passed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        given = args[0] if args else kwargs.get("hidden_states")
        first = out[0] if isinstance(out, tuple) else out
        if not isinstance(given, Tensor) or not isinstance(first, Tensor) or first.shape != given.shape:
            return None
        return (given, *out[1:]) if isinstance(out, tuple) else given

    hooks = [block.register_forward_hook(passed, with_kwargs=True, prepend=True) for block in blocks]
    for module in embedder.parts.outer.modules():
        if module not in text and isinstance(module, nn.Conv2d) and _overlaps(module):
            hooks.append(module.register_forward_hook(_middle_tap, prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def even(length: int, count: int) -> list[tuple[int, int]]:
    """`count` bands, as equal as whole pixels allow, over a side of `length` pixels."""
    edges = np.linspace(0, length, count + 1).round().astype(int)
    return [(int(first), int(end)) for first, end in itertools.pairwise(edges)]


def behind(cell: Int[np.ndarray, " n"], count: int) -> list[tuple[int, int]]:
    """For each of `count` cells the pixels that belong to it; an empty band for a cell without any."""
    found = []
    for number in range(count):
        pixels = np.flatnonzero(cell == number)
        found.append((int(pixels[0]), int(pixels[-1]) + 1) if len(pixels) else (0, 0))
    return found


def _moments(
    response: Float[np.ndarray, "p n"], at: Float[np.ndarray, " p"] | None
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean and deviation of the places of the bands, weighed by the square of each token's response."""
    places = (np.arange(len(response)) if at is None else at)[:, None]
    most = response.max(0)
    weights = np.square(response / np.where(most > 0, most, 1))
    total = np.where(most > 0, weights.sum(0), 1)
    centre = (weights * places).sum(0) / total
    return centre, np.sqrt((weights * np.square(places - centre)).sum(0) / total)


def _overlaps(convolution: nn.Conv2d) -> bool:
    """Whether it has windows wider than its stride, as many as there are cells of that stride."""
    sizes = zip(convolution.kernel_size, convolution.stride, strict=True)
    middle = tuple(d * (k // 2) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True))
    odd = all(k % 2 for k in convolution.kernel_size)
    return odd and convolution.padding == middle and any(k > stride for k, stride in sizes)


def _middle_tap(convolution: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """A convolution's output without its neighbours."""
    y, x = (k // 2 for k in convolution.kernel_size)
    weight = convolution.weight[:, :, y : y + 1, x : x + 1]
    cells = F.avg_pool2d(args[0], convolution.stride, ceil_mode=True)
    return F.conv2d(cells, weight, convolution.bias, groups=convolution.groups)


def _response(states: Float[Tensor, "p n d"], rows: int) -> Response:
    """Distance of each token's state from that under the unpainted image, the first one."""
    change = (states[1:] - states[0]).norm(dim=-1).double().numpy()
    return Response(change[:rows], change[rows:])
