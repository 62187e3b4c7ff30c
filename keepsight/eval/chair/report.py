"""What a CHAIR score consists of, per caption and over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keepsight.eval.image_ids import ImageId

Interval = tuple[float, float]


@dataclass(frozen=True)
class Mention:
    """An object a caption names.

    Attributes:
        word: the word that names it, normalised ("hot dog", "kitten").
        object: the object it names ("hot dog", "cat").
        index: number of the word's first token among the caption's tokens, from 0.
        span: where the word stands in the caption as given: `caption[span[0]:span[1]]`.
    """

    word: str
    object: str
    index: int
    span: tuple[int, int]


@dataclass(frozen=True)
class PerCaption:
    """One caption's share in a score.

    Attributes:
        generated: the objects named, in order, repeats included.
        hallucinated: the mentions of objects that are not in the image.
        named: number of distinct objects named.
        correct: how many of these are in the image.
        expected: number of objects in the image.
        length: number of words and marks, word pairs as one.
    """

    image_id: ImageId
    caption: str
    generated: tuple[str, ...]
    hallucinated: tuple[Mention, ...]
    named: int
    correct: int
    expected: int
    length: int

    @property
    def chair_s(self) -> int:
        """1 if an object is made up, else 0."""
        return int(bool(self.hallucinated))

    @property
    def chair_i(self) -> float | None:
        """Share of mentions that are made up; None if nothing is mentioned."""
        return divide(len(self.hallucinated), len(self.generated))

    @property
    def recall(self) -> float | None:
        """Share of the image's objects that are named; None if it has none."""
        return divide(self.correct, self.expected)

    @property
    def precision(self) -> float | None:
        """Share of the named objects that are in the image; None if none is named."""
        return divide(self.correct, self.named)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None if there is no object on either side."""
        return divide(2 * self.correct, self.named + self.expected)

    def to_json(self) -> dict[str, Any]:
        """The caption's figures as JSON can hold them."""
        return {
            "image_id": self.image_id,
            "caption": self.caption,
            "generated": list(self.generated),
            "hallucinated": [
                {"word": m.word, "object": m.object, "index": m.index, "span": list(m.span)}
                for m in self.hallucinated
            ],
            "chair_s": self.chair_s,
            "chair_i": self.chair_i,
            "recall": self.recall,
            "precision": self.precision,
            "f1": self.f1,
            "length": self.length,
        }


# Every figure is a sum over the captions divided by another: what the bootstrap resamples.
METRICS: Mapping[str, tuple[Callable[[PerCaption], int], Callable[[PerCaption], int]]] = {
    "chair_s": (lambda row: row.chair_s, lambda row: 1),
    "chair_i": (lambda row: len(row.hallucinated), lambda row: len(row.generated)),
    "recall": (lambda row: row.correct, lambda row: row.expected),
    "precision": (lambda row: row.correct, lambda row: row.named),
    "f1": (lambda row: 2 * row.correct, lambda row: row.named + row.expected),
    "length": (lambda row: row.length, lambda row: 1),
    "mentions": (lambda row: len(row.generated), lambda row: 1),
    "no_object": (lambda row: int(not row.generated), lambda row: 1),
}
"""Each figure's numerator and denominator, to be summed over captions."""


@dataclass(frozen=True)
class Report:
    """A CHAIR score. Rates are fractions in [0, 1], None where nothing could be counted.

    Attributes:
        family: which CHAIR this is, "pattern" or "wordnet"; the two must not be compared.
        n: number of captions.
        chair_s: share of captions with a made-up object.
        chair_i: share of mentions that are made up.
        recall: share of the images' objects that are named.
        precision: share of the distinct objects named that are in the image.
        f1: harmonic mean of precision and recall.
        length: mean number of words and marks of a caption (the official "Len", not scaled).
        mentions: mean number of mentions of a caption.
        no_object: share of captions that name no object.
        ci: 95 % bootstrap interval over images of every figure above; None where it has none.
        captions: each caption's share, in the order given.
        vocabulary, vocabulary_sha256: name and digest of the words that were looked for; scores made with
            different ones must not be compared.
    """

    family: str
    n: int
    chair_s: float | None
    chair_i: float | None
    recall: float | None
    precision: float | None
    f1: float | None
    length: float | None
    mentions: float | None
    no_object: float | None
    ci: Mapping[str, Interval | None]
    captions: tuple[PerCaption, ...]
    resamples: int
    seed: int
    vocabulary: str = "coco"
    vocabulary_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON can hold it, captions in the order given."""
        return {
            "family": self.family,
            "vocabulary": {"name": self.vocabulary, "sha256": self.vocabulary_sha256},
            "n": self.n,
            **{name: getattr(self, name) for name in METRICS},
            "ci": {name: None if bounds is None else list(bounds) for name, bounds in self.ci.items()},
            "resamples": self.resamples,
            "seed": self.seed,
            "captions": [row.to_json() for row in self.captions],
        }


def divide(numerator: int, denominator: int) -> float | None:
    """The ratio, or None where there is nothing to divide by."""
    return numerator / denominator if denominator else None
