"""Proofs, on the real back end and at load, that patches are where they should be and attention does what it should.

A transposed grid, a hook that silently does nothing, a causal model labelled bidirectional and a mask in the wrong
tongue all give plausible curves; here they give an error.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segbench.adapters import light
from segbench.adapters.base import FINAL, Adapter, Encoded
from segbench.attention import require_maskable
from segbench.errors import CellError, ModelError
from segbench.types import Sample, Site

IMAGE = (180, 252)  # H x W pixels of what the layout is tested on, or a multiple: no axis passes for the other
WORDS = 4  # behind the image
PIXELS = 14  # of a patch along its shorter edge, at least: a band is blurred where it is scaled up
HALF = 0.5  # patches
BLUR = 0.5  # patches by which resizing may smear a band

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # where configs count them
ROUNDING = 1e-5  # absolute

# Largest difference, relative to the rms of the states, between two kernels that compute the same: a mask that forbids
# nothing may run another kernel than no mask at all.
TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}


class Verdict(NamedTuple):
    """One self-test: what it measured, what was expected, and a sentence if that is not so."""

    name: str
    value: float
    limit: str
    wrong: str = ""


def run(adapter: Adapter) -> None:
    """Prove layout and attention; what was measured goes to `selftests`, the widths of all sites to `widths`.

    ModelError as soon as one of them is wrong.
    """
    adapter.selftests = layout(adapter)
    adapter.selftests |= attention(adapter)
    adapter.widths = widths(adapter)


def layout(adapter: Adapter, image: tuple[int, int] | None = None) -> dict[str, float]:
    """What `distances` are on an image of H x W pixels; ModelError if a patch is misplaced by half a patch or more, or
    sees more of the image than its own surroundings."""
    image = image or test_image(adapter)
    found = distances(adapter, image)
    h, w = adapter.placement(image).grid
    for name, value in found.items():
        if wrong := verdict(name, value, adapter).wrong:
            raise ModelError(
                f"{adapter.spec.name}: layout self-test failed: {wrong} (a grid of {h} x {w} patches, an image of "
                f"{image[0]} x {image[1]} pixels, preprocess: {adapter.spec.preprocess})"
            )
    return found


def attention(adapter: Adapter) -> dict[str, float]:
    """What `differences` are, by name; ModelError as soon as one of them is wrong."""
    found = dict(differences(adapter))
    if not all(map(math.isfinite, found.values())):
        raise ModelError(
            f"{adapter.spec.name}: attention self-test: states of the LLM are not finite ({_listed(found)})"
        )
    verdicts = [verdict(name, value, adapter) for name, value in found.items()]
    if wrong := [one.wrong for one in verdicts if one.wrong]:
        raise ModelError(f"{adapter.spec.name}: attention self-test failed: {'; '.join(wrong)} ({_listed(found)})")
    return found


def test_image(adapter: Adapter) -> tuple[int, int]:
    """H x W pixels of an image that is no square, and on which a patch is large enough for a band to be seen on it."""
    adapter.prepare(_noise(1))  # which counts the tokens
    h, w = adapter.placement(IMAGE).grid
    times = math.ceil(PIXELS / min(IMAGE[0] / h, IMAGE[1] / w))
    return times * IMAGE[0], times * IMAGE[1]


def distances(adapter: Adapter, image: tuple[int, int] | None = None) -> dict[str, float]:
    """Paint every row and column of patches on an image of H x W pixels, at the place that the layout gives it.

    `layout`: largest distance, in patches, between where a patch should be and where its token lights up. `encoder`:
    the same for the rows that the projector consumes. `placeless`: image tokens that are no patches of this grid.
    """
    image = image or test_image(adapter)
    grid_map, placement = adapter.grid_map(image), adapter.placement(image)
    h, w = placement.grid
    bands = [light.behind(cell, count) for cell, count in zip(adapter.layout.cells(image), (h, w), strict=True)]
    frame = adapter.layout.framing
    found = light.look(adapter.embedder, frame, adapter.layout.arguments, image, bands[0], bands[1])
    expected = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij")).reshape(2, -1)
    whole = [_whole(grid_map.scale[axis], bands[axis]) for axis in (0, 1)]
    painted = (whole[0][:, None] & whole[1][None]).reshape(-1)  # patches that lie on the image, not on padding

    def misplaced(response: light.Response, which: np.ndarray) -> float:
        lit = response.lit()[which]
        if (painted & ~lit).any():
            return float("inf")
        away = np.abs(response.centres()[:, which] - expected)[:, painted]
        return float(max(away.max(), response.spread()[:, which][:, painted].max() - BLUR, 0))

    if len(placement.patches) != h * w or placement.patches.max() >= len(found.tokens.lit()):
        raise ModelError(f"{adapter.spec.name}: the layout names {len(placement.patches)} tokens for {h} x {w} patches")
    away = {"layout": misplaced(found.tokens, placement.patches), "encoder": 0.0}
    for response, index in zip(found.consumed, placement.consumed, strict=True):
        for column in index.T:
            away["encoder"] = max(away["encoder"], misplaced(response, column))
    return away | {"placeless": float(placement.tokens - h * w)}


def differences(adapter: Adapter) -> Iterator[tuple[str, float]]:
    """What attention does, by name, as soon as it is known. All differences are of `llm.norm`.

    `leak`: change of the other image tokens when knocked-out ones change, exactly 0. `effect`: change of the other
    image tokens by the knockout itself, above 0. `nothing`, `plain` and `alone`, relative to the states' rms: a
    knockout of no token, the transformers model's own forward pass, and an image without the other one, against
    decode(encode()). `first_token`: change of the first patch when the last one changes, above 0 exactly if the model
    is bidirectional. `behind`, relative as well: words behind the image, as the prompt is cut there. Where attention
    cannot be edited `leak`, `effect` and `nothing` are not there.
    """
    samples = _noise(2)
    batch = adapter.prepare(samples)
    encoded = adapter.encode(batch)
    patches = encoded.image_at.shape
    # Another set in each image, so that a mask shared by the batch is noticed; the first and the last patch stay free.
    blocked = torch.zeros(patches, dtype=torch.bool, device=adapter.device)
    for row in range(2):
        blocked[row, 1 + row : -1 : 3] = True
    last = torch.zeros_like(blocked)
    last[:, -1] = True

    def states(given: Encoded, knocked: Tensor | None = None) -> Float[Tensor, "b t d"]:
        return adapter.decode(given, [FINAL], knocked)[FINAL].float()

    plain = states(encoded)
    last_moved = states(_moved(encoded, last))
    with torch.no_grad(), adapter.attention():
        inputs = {name: tensor.to(adapter.device) for name, tensor in batch.inputs.items()}
        whole = adapter.parts.outer(**inputs, use_cache=False).last_hidden_state.float()
    rows = torch.arange(2, device=adapter.device)[:, None]
    rms = plain.square().mean().sqrt()
    yield "plain", _largest((whole[rows, encoded.image_at] - plain) / rms)
    yield "alone", _largest((states(adapter.encode(adapter.prepare(samples[1:]))) - plain[1:]) / rms)
    first_token = _largest((last_moved - plain)[:, 0])
    yield "first_token", first_token
    if first_token == 0 or adapter.spec.attention == "bidirectional":  # else a prefix may see all of itself
        yield "behind", _largest((_with_words(adapter, inputs)[rows, encoded.image_at] - plain) / rms)
    if not adapter.declared.no_knockout:
        require_maskable(adapter.parts.text)
        try:
            cut = states(encoded, blocked)
            cut_moved = states(_moved(encoded, blocked), blocked)
            nothing = states(encoded, torch.zeros_like(blocked))
        except CellError as error:
            raise ModelError(f"{adapter.spec.name}: attention self-test: {error}") from error
        yield "leak", _largest((cut_moved - cut)[~blocked])
        yield "effect", _largest((cut - plain)[~blocked])
        yield "nothing", _largest((nothing - plain) / rms)


def verdict(name: str, value: float, adapter: Adapter) -> Verdict:
    """What is to be said of one of the `distances` or `differences` of an adapter."""
    limit = TOLERANCE[str(adapter.model.dtype).removeprefix("torch.")]
    if name in ("layout", "encoder"):
        what = "an image token" if name == "layout" else "a row that the projector consumes"
        wrong = f"{what} is {value:.2f} patches from where the grid puts it" if not value < HALF else ""
        return Verdict(name, value, f"< {HALF} patches", wrong)
    if name == "placeless":
        return Verdict(name, value, "any number")
    if not math.isfinite(value):
        return Verdict(name, value, "a finite number", "states of the LLM are not finite")
    if name == "leak":
        allowed = _leak(adapter)
        wrong = f"knocked-out image tokens still reach others, which moved by {value:.1e} instead of 0"
        return Verdict(name, value, f"<= {allowed:g}" if allowed else "= 0", "" if value <= allowed else wrong)
    if name == "effect":
        wrong = "a knockout changes nothing: its mask is not honoured"
        return Verdict(name, value, "> 0", "" if value > 0 else wrong)
    if name == "first_token":
        return _first_token(value, adapter.spec.attention)
    wrong = {
        "nothing": f"a knockout of no token changes the states by {value:.1e} of their rms",
        "plain": f"the model's own forward pass differs by {value:.1e} of the states' rms",
        "behind": f"words behind the image change it by {value:.1e} of the states' rms: no prompt can be cut there",
        "alone": f"an image alone differs from itself in a batch by {value:.1e} of the states' rms",
    }[name]
    return Verdict(name, value, f"<= {limit:g} of the rms", "" if value <= limit else wrong)


def _first_token(value: float, attention: str) -> Verdict:
    if attention == "causal":
        wrong = "the first image token sees the last one, yet the spec says causal"
        return Verdict("first_token", value, "= 0, as it is causal", "" if value == 0 else wrong)
    if attention == "bidirectional":
        wrong = "the first image token does not see the last one, yet the spec says bidirectional"
        return Verdict("first_token", value, "> 0, as it is bidirectional", "" if value > 0 else wrong)
    return Verdict("first_token", value, "any: attention is the family's own")


def widths(adapter: Adapter) -> dict[Site, int]:
    """Feature width of every site, as read from one image."""
    sites = [site for site in adapter.known_sites() if site.stream != "key_pre"]  # as wide as the keys that follow
    found = adapter.read(adapter.prepare(_noise(1)), sites)
    widths = {site: found[site].shape[-1] for site in sites}
    before = {replace(site, stream="key_pre"): width for site, width in widths.items() if site.stream == "key"}
    return widths | before


def _whole(scale: float, bands: list[tuple[int, int]]) -> np.ndarray:
    """Which rows (or columns) of patches lie on the image by at least three quarters."""
    return np.array([end - first >= 0.75 / scale - 1 for first, end in bands])


def _with_words(adapter: Adapter, inputs: Mapping[str, Tensor]) -> Float[Tensor, "b s d"]:
    """Last states of the model's own forward pass over the prompts and a few words more."""
    ids, image = inputs["input_ids"], adapter.parts.image_token_id
    word = int(ids[0, 0]) if int(ids[0, 0]) != image else max(0, image - 1)
    longer = dict(inputs)
    for name, tensor in inputs.items():
        if tensor.shape == ids.shape:
            longer[name] = F.pad(tensor, (0, WORDS), value={"input_ids": word, "attention_mask": 1}.get(name, 0))
    with torch.no_grad(), adapter.attention():
        return adapter.parts.outer(**longer, use_cache=False).last_hidden_state.float()


def _leak(adapter: Adapter) -> float:
    """What may leak: nothing; in a mixture of experts, rounding, as tokens are multiplied in groups of any size."""
    known = adapter.parts.text.config.to_dict()
    return ROUNDING if any(known.get(name) for name in EXPERTS) else 0.0


def _moved(encoded: Encoded, which: Tensor) -> Encoded:
    """Other vectors, of the same size, at these patches."""
    embeddings = encoded.call["inputs_embeds"].clone()
    rows, patches = which.nonzero(as_tuple=True)
    at = encoded.image_at[rows, patches]
    embeddings[rows, at] = -2 * embeddings[rows, at] + embeddings.std()
    return encoded.with_embeddings(embeddings)


def _noise(count: int) -> Sequence[Sample]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [Sample("noise", Image.fromarray(image), np.zeros((64, 64), np.uint8)) for image in images]


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _listed(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())
