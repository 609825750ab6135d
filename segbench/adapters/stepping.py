"""The LLM one block at a time, so that the states of many images can rest between two blocks.

A step is the model's own forward pass over its first blocks, where all but the last of them hand on what they got:
masks, positions and whatever is added between blocks stay the model's own. The resting states enter the last one.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segbench.adapters.base import FINAL, Adapter, Encoded
from segbench.attention import decoder_layers
from segbench.errors import ModelError
from segbench.types import Site


class Stepper:
    """Steps through the blocks of one adapter's text model; `Stepper.of` proves that it can."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._tuples: dict[int, bool] = {}  # by block, whether it returns its states in a tuple

    @classmethod
    def of(cls, adapter: Adapter, encoded: Encoded) -> "Stepper":
        """A stepper whose states of this batch are those of one forward pass to the last bit; ModelError otherwise.

        Blocks that need more of earlier ones than their states (shared keys, say) or that are not called one after the
        other cannot be stepped through.
        """
        stepper, name = cls(adapter), adapter.spec.name
        sites = [site for site in adapter.known_sites() if site.stage == "llm" and site.stream != "key_pre"]
        expected: dict[Site, Tensor] = {}
        with stepper._watched():
            adapter.replay(encoded, sites, expected.__setitem__)
        try:
            found = dict(stepper._all(encoded, sites))
        except (
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
        ) as error:  # of the model's own code
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(f"{name}: {type(adapter.parts.text).__name__} does not step: {reason}") from error
        for site in sites:
            if not torch.equal(found[site], expected[site]):
                raise ModelError(f"{name}: stepped to {site}, the states are not those of one forward pass")
        return stepper

    def enter(self, encoded: Encoded) -> Float[Tensor, "b s d"]:
        """What enters the first block."""
        return self._shown(encoded, [Site("llm", 0)])[Site("llm", 0)]

    def advance(
        self, encoded: Encoded, states: Float[Tensor, "b s d"], block: int, streams: Collection[Site] = ()
    ) -> tuple[Float[Tensor, "b s d"], dict[Site, Float[Tensor, "b t _"]]]:
        """The states behind a block, and the keys and values that were asked for, at the patches: [b, t, d].

        `encoded` needs no embeddings of its own: `resting` is enough.
        """
        behind = Site("llm", block + 1)
        with self._only(block, states):
            shown = self._shown(encoded.with_embeddings(states), [behind, *streams])
        return shown[behind], {site: at_patches(encoded, shown[site]) for site in streams}

    def norm(self, encoded: Encoded, states: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """The states behind the final norm."""
        with self._only(self.adapter.depth, states):
            return self._shown(encoded.with_embeddings(states), [FINAL])[FINAL]

    def _all(self, encoded: Encoded, sites: Collection[Site]) -> Iterator[tuple[Site, Tensor]]:
        """All positions of every site, from steps."""
        states, at_rest = self.enter(encoded), resting(encoded)
        yield Site("llm", 0), states
        for block in range(self.adapter.depth):
            streams = [site for site in sites if site.layer == block and site.stream != "hidden"]
            with self._only(block, states):
                shown = self._shown(at_rest.with_embeddings(states), [Site("llm", block + 1), *streams])
            states = shown[Site("llm", block + 1)]
            yield from shown.items()
        yield FINAL, self.norm(at_rest, states)

    def _shown(self, encoded: Encoded, sites: Collection[Site]) -> dict[Site, Tensor]:
        shown: dict[Site, Tensor] = {}
        self.adapter.replay(encoded, sites, shown.__setitem__)
        return shown

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Note what each block returns."""

        def note(number: int) -> Callable[..., None]:
            return lambda block, args, out: self._tuples.__setitem__(number, isinstance(out, tuple))

        with ExitStack() as stack:
            for number, block in enumerate(decoder_layers(self.adapter.parts.text)):
                stack.callback(block.register_forward_hook(note(number)).remove)
            yield

    @contextmanager
    def _only(self, number: int, states: Float[Tensor, "b s d"]) -> Iterator[None]:
        """Of the first blocks only this one works, and on these states; the final norm counts as one more block."""

        def enter(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

        def through(in_tuple: bool) -> Callable[..., Any]:
            def hand_on(*args: Any, **kwargs: Any) -> Any:
                given = args[0] if args else kwargs["hidden_states"]
                return (given,) if in_tuple else given

            return hand_on

        blocks = decoder_layers(self.adapter.parts.text)
        working = blocks[number] if number < len(blocks) else self.adapter.parts.norm
        with ExitStack() as stack:
            for before, block in enumerate(list(blocks)[:number]):
                block.forward = through(self._tuples[before])  # of the instance: the class keeps its own
                stack.callback(block.__dict__.pop, "forward")
            stack.callback(working.register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield


def resting(encoded: Encoded) -> Encoded:
    """The batch without what no block needs again: the embeddings and the encoder's features."""
    call = {name: value for name, value in encoded.call.items() if name != "inputs_embeds"}
    return replace(encoded, encoder=encoded.encoder.new_empty(*encoded.encoder.shape[:2], 0), call=call)


def at_patches(encoded: Encoded, states: Float[Tensor, "b s d"]) -> Float[Tensor, "b t d"]:
    """The states of the image tokens that have a place in the image."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states[rows, encoded.image_at.to(states.device)]
