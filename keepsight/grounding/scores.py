"""Scores of tokens and words: pure functions and plain data that need no model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keepsight.decoding.contrast import contrast
from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.grounding.alignment import Nouns, Span, object_words, token_letters, word_tokens

SCORES = ("contrast", "difference", "likelihood", "negative_entropy", "divergence")
"""Names of the scores of a token; ``keepsight.grounding`` has their formulas."""
AGGREGATES = ("first", "mean", "min", "sum")
"""Names of the ways to make one score of those of a word's tokens."""
SCORE = "contrast"
"""The default score: the one that detects invented objects best on the demo world's ``val`` splits
(``benchmarks/grounding.py``)."""
AGGREGATE = "mean"
"""The default aggregate over a word's tokens, chosen with ``SCORE``."""
WEIGHT = 0.5
"""The default w of ``contrast``, chosen with ``SCORE``."""
THRESHOLD = -0.18
"""Words with less support are flagged. It gives the largest F1 on the demo world's ``val-shifted``; other models need a
threshold of their own."""


class Figures(NamedTuple):
    """The figures of some tokens: float32 tensors of one shape, in nats. ``TokenGrounding`` says what each field means."""

    with_image: Tensor
    without_image: Tensor
    contrast: Tensor
    entropy: Tensor
    divergence: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenGrounding:
    """One generated token and its figures, in nats.

    Args:
        id: the token's id in the vocabulary.
        span: where the characters that it writes begin and end in the text; the end is excluded.
        with_image: its log-probability given the picture and the text before it, at most 0.
        without_image: the same given the text alone, at most 0.
        contrast: its log-probability under the contrast of both distributions, at most 0.
        entropy: of the distribution given the picture, 0 or more.
        divergence: KL(given the picture ‖ given the text alone), 0 or more.
    """

    id: int
    span: Span
    with_image: float
    without_image: float
    contrast: float
    entropy: float
    divergence: float

    @property
    def difference(self) -> float:
        """``with_image - without_image``: how much the picture adds to the log-probability."""
        return self.with_image - self.without_image

    @property
    def likelihood(self) -> float:
        """``with_image`` under the name that it has as a score."""
        return self.with_image

    @property
    def negative_entropy(self) -> float:
        """``-entropy``, at most 0: higher where the model is more certain of what comes next."""
        return -self.entropy

    def support(self, score: str) -> float:
        """Returns the score of that name, one of ``SCORES``. A higher value says that the picture supports the token
        better."""
        return float(getattr(self, score))


@dataclass(frozen=True, kw_only=True)
class WordGrounding:
    """One object word of a text.

    Args:
        word: the word as it stands in the text.
        object: the object that it names, such as ``dog`` for ``dogs``.
        span: where the word begins and ends in the text, in characters; the end is excluded.
        tokens: the numbers of the tokens that write it, counted from 0.
        with_image, without_image: the log-probability of all its tokens together, given the text before, in nats.
        support: the chosen score, aggregated over the tokens as chosen.
    """

    word: str
    object: str
    span: Span
    tokens: tuple[int, ...]
    with_image: float
    without_image: float
    support: float

    @property
    def difference(self) -> float:
        """``with_image - without_image``: how much the picture adds to the log-probability of the word."""
        return self.with_image - self.without_image


@dataclass(frozen=True)
class Grounding:
    """A text, without white space around it, and the grounding of each of its tokens."""

    text: str
    tokens: tuple[TokenGrounding, ...]

    def words(
        self, nouns: Nouns | None = None, *, score: str = SCORE, aggregate: str = AGGREGATE
    ) -> tuple[WordGrounding, ...]:
        """Returns the object words with their support, in order, repeats included.

        Args:
            nouns: words to look for. Default: the 80 objects of COCO, as CHAIR finds them.
            score: one of ``SCORES``.
            aggregate: over the tokens of a word: the ``first``, their ``mean``, ``min`` (the least supported) or ``sum``.

        Raises:
            InvalidParameter: there is no score or aggregate of this name.
        """
        check_choice("score", score, SCORES)
        check_choice("aggregate", aggregate, AGGREGATES)
        spans = [token.span for token in self.tokens]
        found = []
        for word in object_words(self.text, nouns):
            numbers = word_tokens(spans, word.span)
            own = [self.tokens[at] for at in numbers]
            found.append(
                WordGrounding(
                    word=word.word,
                    object=word.object,
                    span=word.span,
                    tokens=numbers,
                    # Log-probabilities of a word's tokens add up to the log-probability of the word, by the chain rule.
                    with_image=sum(token.with_image for token in own),
                    without_image=sum(token.without_image for token in own),
                    support=aggregated([token.support(score) for token in own], aggregate),
                )
            )
        return tuple(found)


def aggregated(supports: Sequence[float], aggregate: str) -> float:
    """Returns one number for those of a word's tokens; ``aggregate`` is one of ``AGGREGATES``.

    >>> [aggregated([-1.0, -4.0, 2.0], way) for way in ("first", "mean", "min", "sum")]
    [-1.0, -1.0, -4.0, -3.0]
    """
    if aggregate == "first":
        return supports[0]
    if aggregate == "min":
        return min(supports)
    total = sum(supports)
    return total / len(supports) if aggregate == "mean" else total


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ``InvalidParameter`` unless ``name`` is one of ``known``."""
    if name not in known:
        raise InvalidParameter(f"no {what} is called {name!r}: {did_you_mean(name, known)}")


def figures(expert: Tensor, amateur: Tensor, chosen: Tensor, *, weight: float = WEIGHT) -> Figures:
    """Returns the figures of tokens that were chosen from given scores.

    Args:
        expert: logits given the picture, ``(..., vocab)``; they are normalised here, in float32.
        amateur: logits without the picture, of the same shape.
        chosen: ids of the chosen tokens, ``(...)``.
        weight: the w of ``contrast``, 0 or more.

    Raises:
        InvalidParameter: the weight is out of its range.
    """
    if not 0 <= weight < math.inf:
        raise InvalidParameter(f"weight={weight} must be a finite number, 0 or more")
    expert, amateur = expert.float().log_softmax(-1), amateur.to(expert.device).float().log_softmax(-1)
    # A weighted difference of two normalised distributions is not normalised itself, which calls for a second softmax.
    moved = contrast(expert, amateur, strength=weight).log_softmax(-1)
    p = expert.exp()
    at = chosen.to(expert.device)[..., None]

    def mean(values: Tensor) -> Tensor:
        # A token that is ruled out has p = 0 and log p = -inf. Their product is not a number, while its limit is 0.
        return torch.where(p > 0, p * values, 0.0).sum(-1)

    return Figures(
        expert.gather(-1, at)[..., 0],
        amateur.gather(-1, at)[..., 0],
        moved.gather(-1, at)[..., 0],
        -mean(expert),
        mean(expert - amateur),
    )


def joined(tokenizer: Any, ids: Sequence[int], found: Figures) -> Grounding:
    """Returns the text of some tokens and their figures as one ``Grounding``.

    Args:
        tokenizer: the model's tokenizer.
        ids: the tokens.
        found: their figures, each a tensor ``(tokens,)``.
    """
    text, spans = token_letters(tokenizer, ids)
    columns = [column.tolist() for column in found]
    tokens = [
        TokenGrounding(id=token, span=span, **dict(zip(Figures._fields, row, strict=True)))
        for token, span, row in zip(ids, spans, zip(*columns, strict=True), strict=True)
    ]
    return Grounding(text, tuple(tokens))
