"""Proofs, on the real back end and at load, that this model's attention does what a measurement will say it does.

A hook that silently does nothing, a causal model labelled bidirectional and a mask in the wrong tongue all give
plausible curves; here they give an error.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from segbench.adapters.base import FINAL, Adapter, Encoded
from segbench.attention import require_maskable
from segbench.errors import CellError, ModelError
from segbench.types import Sample

# Largest difference, relative to the rms of the states, between two kernels that compute the same: a mask that forbids
# nothing may run another kernel than no mask at all.
TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}


def run(adapter: Adapter) -> dict[str, float]:
    """What was measured, by name; ModelError as soon as one of them is wrong. All differences are of `llm.norm`.

    `leak`: change of the other image tokens when knocked-out ones change, exactly 0. `effect`: change of the other
    image tokens by the knockout itself, above 0. `nothing` and `plain`, relative to the states' rms: a knockout of no
    token, and the transformers model's own forward pass, against decode(encode()). `first_token`: change of the first
    patch when the last one changes, above 0 exactly if the model is bidirectional.
    """
    require_maskable(adapter.parts.text)
    batch = adapter.prepare(_noise(2))
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

    try:
        plain = states(encoded)
        cut = states(encoded, blocked)
        cut_moved = states(_moved(encoded, blocked), blocked)
        nothing = states(encoded, torch.zeros_like(blocked))
        last_moved = states(_moved(encoded, last))
    except CellError as error:
        raise ModelError(f"{adapter.spec.name}: attention self-test: {error}") from error
    with torch.no_grad(), adapter.attention():
        inputs = {name: tensor.to(adapter.device) for name, tensor in batch.inputs.items()}
        whole = adapter.parts.outer(**inputs, use_cache=False).last_hidden_state.float()
    rows = torch.arange(2, device=adapter.device)[:, None]
    rms = plain.square().mean().sqrt()
    found = {
        "leak": _largest((cut_moved - cut)[~blocked]),
        "effect": _largest((cut - plain)[~blocked]),
        "nothing": _largest((nothing - plain) / rms),
        "plain": _largest((whole[rows, encoded.image_at] - plain) / rms),
        "first_token": _largest((last_moved - plain)[:, 0]),
    }
    if not bool(torch.isfinite(torch.tensor(list(found.values()))).all()):
        raise ModelError(
            f"{adapter.spec.name}: attention self-test: states of the LLM are not finite ({_listed(found)})"
        )
    if wrong := _wrong(found, adapter):
        raise ModelError(f"{adapter.spec.name}: attention self-test failed: {'; '.join(wrong)} ({_listed(found)})")
    return found


def _wrong(found: dict[str, float], adapter: Adapter) -> list[str]:
    """One sentence for every self-test that failed."""
    limit, wrong = TOLERANCE[adapter.spec.dtype], []
    if found["leak"] != 0:
        wrong.append(f"knocked-out image tokens still reach others, which moved by {found['leak']:.1e} instead of 0")
    if found["effect"] == 0:
        wrong.append("a knockout changes nothing: its mask is not honoured")
    if found["nothing"] > limit:
        wrong.append(f"a knockout of no token changes the states by {found['nothing']:.1e} of their rms")
    if found["plain"] > limit:
        wrong.append(f"the model's own forward pass differs by {found['plain']:.1e} of the states' rms")
    sees = found["first_token"] != 0
    if sees and adapter.spec.attention == "causal":
        wrong.append("the first image token sees the last one, yet the spec says causal")
    if not sees and adapter.spec.attention == "bidirectional":
        wrong.append("the first image token does not see the last one, yet the spec says bidirectional")
    return wrong


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
