"""Text dominance: whether a model attends to a token of the picture as much as to a token of the text.

MDI and AEI are defined as in "When Language Overrules" (arXiv 2508.10552). A is the attention that the rows which predict
an answer pay to the text T and to the picture O of the input, summed over these rows::

    MDI = (A_T / |T|) / (A_O / |O|)        AEI_T = (A_T / (A_T + A_O)) / (|T| / (|T| + |O|)),  likewise AEI_O

An MDI above 1 says that a token of the text gets more attention than a token of the picture. MDI = AEI_T / AEI_O.
The definition leaves choices open, which can change a figure as much as a method does: see ``Reading``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.errors import InvalidParameter, did_you_mean

Array = NDArray[np.float64]

PARTS = ("image", "bos", "special", "before", "after", "own")
"""The parts into which the tokens that can be attended to are divided; a token belongs to the first part that fits.

``image``: tokens of the picture. ``bos``: the begin-of-sequence token, or whatever stands first in the prompt. ``special``:
special tokens of the chat template and around the picture. ``before``: text before the picture, which is the system prompt,
if there is one, and the beginning of the user's turn. ``after``: text after the first token of the picture. ``own``: tokens
that the model generated.
"""
INPUT = ("bos", "special", "before", "after")
"""All parts of the prompt but the picture, which is the text in the literal sense of the definition."""
HEADS = ("mean", "each")
AVERAGES = ("samples", "pooled")
FIGURES = ("mdi", "aei_text", "aei_image", "image_share")


@dataclass(frozen=True)
class Dominance:
    """MDI, AEI of the text and AEI of the picture, each 0 or more; None where a denominator is zero."""

    mdi: float | None
    aei_text: float | None
    aei_image: float | None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The choices that the definition leaves open.

    Args:
        text: the parts that count as text, from ``bos``, ``special``, ``before``, ``after`` and ``own``; by default all of
            the prompt. With ``own``, |T| includes the generated tokens that a row sees, on average over the rows.
        heads: ``mean`` (the default) averages the attention over heads first, ``each`` averages the figures of the heads.
        average: how several answers are combined. ``samples`` (the default) takes the mean of the answers' figures;
            ``pooled`` adds up attention and tokens of all rows of all answers first, so that long answers weigh more.
        group: number of layers in each of the groups ``early`` (the first layers), ``middle`` (those in the centre) and
            ``late`` (the last), 1 or more; the default is 2.

    Raises:
        InvalidParameter: a name is unknown or comes twice, there is no text, or a group has no layers.
    """

    text: tuple[str, ...] = INPUT
    heads: str = "mean"
    average: str = "samples"
    group: int = 2

    def __post_init__(self) -> None:
        if not self.text or len(set(self.text)) < len(self.text):
            raise InvalidParameter("text: name at least one part, and none twice")
        for name, value, known in (
            # The picture is the first part and cannot count as text.
            *(("text", part, PARTS[1:]) for part in self.text),
            ("heads", self.heads, HEADS),
            ("average", self.average, AVERAGES),
        ):
            if value not in known:
                raise InvalidParameter(f"{name}: no {value!r}; {did_you_mean(value, known)}")
        if self.group < 1:
            raise InvalidParameter(f"group={self.group} must be a whole number of layers, 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Return the choices as values that JSON can hold, with the parts in the order of ``PARTS``."""
        ordered = [part for part in PARTS if part in self.text]
        return {"text": ordered, "heads": self.heads, "average": self.average, "group": self.group}

    def __str__(self) -> str:
        heads = (
            "attention averaged over heads first" if self.heads == "mean" else "mean of the heads' figures"
        )
        over = "mean of each answer's figure" if self.average == "samples" else "answers pooled"
        return f"text = {'+'.join(self.to_json()['text'])}; {heads}; {over}"


@dataclass(frozen=True, eq=False)
class Masses:
    """The attention of the rows that predicted the tokens of one answer.

    Attributes:
        attention: ``(layers, heads, parts)``, the attention to each part summed over the rows. Its sum over parts is the
            number of rows.
        tokens: ``(parts,)``, the number of tokens of each part that a row sees, summed over the rows.
        shares: ``(rows, layers)``, the attention to the picture, averaged over heads, in [0, 1].
    """

    attention: Array
    tokens: Array
    shares: Array

    @property
    def rows(self) -> int:
        """Number of rows, which is the number of generated tokens."""
        return int(self.shares.shape[0])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.attention.shape[0])

    @property
    def counts(self) -> dict[str, float]:
        """Number of tokens of each part that a row sees, on average over the rows; only ``own`` changes from row to row."""
        return dict(zip(PARTS, (self.tokens / self.rows).tolist(), strict=True))


def dominance(
    text_attention: float, image_attention: float, text_tokens: float, image_tokens: float
) -> Dominance:
    """Return MDI and both AEI of given attentions and numbers of tokens; only the ratio of the attentions matters.

    >>> dominance(0.5, 0.5, 35, 576).mdi
    16.457142857142856

    A figure with a denominator of zero is None, such as the MDI without text, picture, or attention to the picture.

    Raises:
        InvalidParameter: a value is negative, infinite or NaN.
    """
    given = (text_attention, image_attention, text_tokens, image_tokens)
    if bad := [value for value in given if not (math.isfinite(value) and value >= 0)]:
        raise InvalidParameter(f"attention and token counts are finite and not negative, not {bad[0]}")
    found = _figures(*(np.float64(value) for value in given))
    return Dominance(*(None if np.isnan(value) else float(value) for value in found))


def groups(layers: int, size: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the layers of each group, numbered from 0; in a model with few layers the groups overlap.

    >>> groups(32)["middle"]
    (15, 16)
    """
    size = min(size, layers)  # a model may have fewer layers than a group
    start = (layers - size) // 2
    return {
        "early": tuple(range(size)),
        "middle": tuple(range(start, start + size)),
        "late": tuple(range(layers - size, layers)),
        "all": tuple(range(layers)),
    }


def by_layer(masses: Masses, reading: Reading | None = None) -> list[dict[str, float | None]]:
    """Return the figures of every layer for one answer, with the default ``Reading`` if none is given."""
    found = figures_by_layer(reduced([masses], reading or Reading()))[0]
    return [{name: number(value) for name, value in zip(FIGURES, row, strict=True)} for row in found]


@dataclass(frozen=True, eq=False)
class Reduced:
    """The part of some answers that a reading needs.

    Attributes:
        text, image, total: attention to the text, to the picture and to everything, ``(answers, layers, heads)``; heads
            that are averaged first are one head.
        text_tokens, image_tokens: numbers of tokens, ``(answers,)``.
    """

    text: Array
    image: Array
    total: Array
    text_tokens: Array
    image_tokens: Array

    def added(self, times: Array) -> Reduced:
        """Add up the answers, each as often as ``times`` ``(resamples, answers)`` says; a resample becomes one answer."""
        # Attention and tokens are added up before any ratio is taken: this is what pooling means.
        text, image, total = (
            np.tensordot(times, one, axes=(1, 0)) for one in (self.text, self.image, self.total)
        )
        return Reduced(text, image, total, times @ self.text_tokens, times @ self.image_tokens)


def reduced(answers: Sequence[Masses], reading: Reading) -> Reduced:
    """Return the part of ``answers`` that ``reading`` needs.

    Raises:
        InvalidParameter: there are no answers, or they are of models with different numbers of layers or heads.
    """
    if not answers:
        raise InvalidParameter("no answers to take figures from: measure at least one picture")
    if len({one.attention.shape for one in answers}) > 1:
        raise InvalidParameter("answers of models with different layers or heads cannot be averaged")
    attention = np.stack([one.attention for one in answers])
    tokens = np.stack([one.tokens for one in answers])
    # The axis of the heads is kept with length 1, so that both readings go on with the same shapes.
    if reading.heads == "mean":
        attention = attention.mean(2, keepdims=True)
    text = [PARTS.index(part) for part in reading.text]
    return Reduced(
        attention[..., text].sum(-1),
        attention[..., 0],  # the first of `PARTS` is the picture
        attention.sum(-1),
        tokens[:, text].sum(-1),
        tokens[:, 0],
    )


def _figures(text: Any, image: Any, text_tokens: Any, image_tokens: Any) -> tuple[Any, Any, Any]:
    """Return MDI, AEI_T and AEI_O elementwise, with NaN where a denominator is zero."""
    # Each figure is a quotient of products instead of a quotient of quotients, so that only one denominator can be zero.
    both, tokens = text + image, text_tokens + image_tokens
    return (
        over(text * image_tokens, image * text_tokens),
        over(text * tokens, both * text_tokens),
        over(image * tokens, both * image_tokens),
    )


def over(top: Any, bottom: Any) -> Any:
    """Return ``top / bottom`` elementwise, with NaN where ``bottom`` is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def figures_by_layer(found: Reduced) -> Array:
    """Return the ``FIGURES`` of every layer, ``(answers, layers, figures)``.

    A layer with a head that has no figure has none either: NaN stands for both.
    """
    # The numbers of tokens get axes for layers and heads.
    counts = (one[:, None, None] for one in (found.text_tokens, found.image_tokens))
    figures = (*_figures(found.text, found.image, *counts), over(found.image, found.total))
    # A mean that skips NaN would let a head without a figure drop out of its layer unnoticed.
    return np.stack([figure.mean(-1) for figure in figures], axis=-1)


def grouped(found: Reduced, reading: Reading) -> Array:
    """Return the means of the layers' figures over each group, ``(answers, groups, figures)``."""
    layers = figures_by_layer(found)
    picked = groups(layers.shape[1], reading.group).values()
    return np.stack([layers[:, list(some)].mean(1) for some in picked], axis=1)


def number(value: Any) -> float | None:
    """Return the value as a Python number, or None for NaN."""
    return None if np.isnan(value) else float(value)
