"""Many short questions about one picture in one sequence, each blind to the others.

The sequence is `<s>`, the shared prefix (image tokens or facts), then segments. A segment sees the prefix and itself
and stands at the positions right behind the prefix: every question is answered exactly as if it had been asked alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segbench.data.scenes import Question
from segbench.training import tokens

IGNORED = -100  # label of a token that no loss counts
BLOCKED = torch.finfo(torch.float32).min  # not -inf, which makes NaN of a row in which everything is blocked


@dataclass(frozen=True)
class Layout:
    """How long the parts of a packed sequence are; one Layout has one mask."""

    image: int  # image tokens at 1..image; 0 for text alone
    prefix: int  # tokens that everything behind them sees, <s> and image included
    segments: tuple[int, ...]  # tokens of each segment

    @property
    def length(self) -> int:
        """Tokens of a sequence, with the pad at its end whose label is the last segment's answer."""
        return self.prefix + sum(self.segments) + 1

    def starts(self) -> list[int]:
        """Position in the sequence at which each segment begins."""
        return [self.prefix + sum(self.segments[:i]) for i in range(len(self.segments))]


def allowed(layout: Layout, attention: Literal["causal", "bidirectional"]) -> Bool[Tensor, "s s"]:
    """Who may attend to whom: causal, or also image to image (paper Eq. 2), and no segment to another."""
    segment = torch.full((layout.length,), -1)
    for number, (start, size) in enumerate(zip(layout.starts(), layout.segments, strict=True)):
        segment[start : start + size] = number
    segment[-1] = len(layout.segments)
    may = torch.ones(layout.length, layout.length, dtype=torch.bool).tril()
    may &= (segment[None, :] == -1) | (segment[:, None] == segment[None, :])
    if attention == "bidirectional":
        may[1 : 1 + layout.image, 1 : 1 + layout.image] = True
    return may


def mask(layout: Layout, attention: Literal["causal", "bidirectional"]) -> Float[Tensor, "1 1 s s"]:
    """`allowed` as what eager attention adds to its scores; a boolean mask it would silently misread."""
    return torch.zeros(1, 1, layout.length, layout.length).masked_fill(~allowed(layout, attention), BLOCKED)


def positions(layout: Layout) -> Int[Tensor, "1 s"]:
    """Position ids: every segment begins right behind the prefix."""
    behind = [layout.prefix + i for size in layout.segments for i in range(size)]
    return torch.tensor([[*range(layout.prefix), *behind, layout.prefix]])


def layout(image: int, asked: Sequence[Question]) -> Layout:
    """The layout of `pack` for one picture's questions."""
    return Layout(image, 1 + image, tuple(len(_segment(question)) for question in asked))


def pack(
    asked: Sequence[Sequence[Question]], image: int
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"], Int[Tensor, "b q"]]:
    """input_ids, labels, and where in the sequence the label of each question's answer stands.

    All pictures must have questions of the same kinds in the same order. A label stands one place behind the token that
    predicts it, as transformers' loss expects; for the last token of a segment that place belongs to the next segment.
    """
    places = layout(image, asked[0])
    prefix = [tokens.BOS, *[tokens.IMAGE] * image]
    ids = torch.full((len(asked), places.length), tokens.PAD)
    labels = torch.full((len(asked), places.length), IGNORED)
    answers = torch.empty((len(asked), len(places.segments)), dtype=torch.long)
    for row, questions in enumerate(asked):
        ids[row, : len(prefix)] = torch.tensor(prefix)
        for number, (start, question) in enumerate(zip(places.starts(), questions, strict=True)):
            segment = _segment(question)
            ids[row, start : start + len(segment)] = torch.tensor(segment)
            answers[row, number] = start + len(tokens.ids(question.text))
            labels[row, answers[row, number]] = tokens.VOCABULARY[question.answer]
            if question.kind == "any":
                labels[row, start + len(segment)] = tokens.EOS
    return ids, labels, answers


def _segment(question: Question) -> list[int]:
    """The question's tokens; an `any` question keeps its answer, so that what follows an answer is learned too."""
    answer = [tokens.VOCABULARY[question.answer]] if question.kind == "any" else []
    return tokens.ids(question.text) + answer
