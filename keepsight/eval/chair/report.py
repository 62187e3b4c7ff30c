"""The parts of a CHAIR score: mentions, the figures of each caption, and the figures of all captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keepsight.eval.image_ids import ImageId

Interval = tuple[float, float]


@dataclass(frozen=True)
class Mention:
    """One place at which a caption names an object.

    Attributes:
        word: the word that names the object, in its dictionary form ("hot dog", "kitten").
        object: the object that it names ("hot dog", "cat").
        index: number of the word's first token among the tokens of the caption, from 0.
        span: the place of the word in the caption as given, which is `caption[span[0]:span[1]]`.
    """

    word: str
    object: str
    index: int
    span: tuple[int, int]


@dataclass(frozen=True)
class PerCaption:
    """The part of one caption in a score.

    Attributes:
        image_id: the image of the caption.
        caption: the text as given.
        generated: the objects that the caption names, in order, repeats included.
        hallucinated: the mentions of objects that are not in the image.
        named: number of distinct objects that the caption names.
        correct: number of these that are in the image.
        expected: number of objects in the image.
        length: number of words and punctuation marks, where a word pair counts as one.
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
        """1 if a mentioned object is not in the image, else 0."""
        return int(bool(self.hallucinated))

    @property
    def chair_i(self) -> float | None:
        """Share of mentions whose object is not in the image; None if nothing is mentioned."""
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
        """Return the caption and its figures as values that JSON can hold."""
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


# Every figure is a sum over captions divided by another, so that the bootstrap only has to add up the sums of the images
# that it draws. This is why F1 is written with counts here instead of as the harmonic mean of precision and recall.
METRICS: Mapping[str, tuple[Callable[[PerCaption], int], Callable[[PerCaption], int]]] = {
    "chair_s": (lambda row: row.chair_s, lambda row: 1),
    "chair_i": (lambda row: len(row.hallucinated), lambda row: len(row.generated)),
    "recall": (lambda row: row.correct, lambda row: row.expected),
    "precision": (lambda row: row.correct, lambda row: row.named),
    "f1": (lambda row: 2 * row.correct, lambda row: row.named + row.expected),
    "length": (lambda row: row.length, lambda row: 1),
    # The last two are not part of the official score. A caption that says less invents less, and they show how much is said.
    "mentions": (lambda row: len(row.generated), lambda row: 1),
    "no_object": (lambda row: int(not row.generated), lambda row: 1),
}
"""The numerator and the denominator of each figure, to be summed over captions."""


@dataclass(frozen=True)
class Report:
    """A CHAIR score. Rates are fractions in [0, 1], or None where there was nothing to count.

    Attributes:
        family: "pattern" or "wordnet"; scores of the two families must not be compared.
        n: number of captions.
        chair_s: share of captions that name an object that is not in the image.
        chair_i: share of mentions whose object is not in the image.
        recall: share of the images' objects that are named.
        precision: share of the distinct objects named that are in the image.
        f1: harmonic mean of precision and recall.
        length: mean number of words and punctuation marks of a caption (the official "Len", not scaled).
        mentions: mean number of mentions of a caption.
        no_object: share of captions that name no object.
        ci: 95 % bootstrap interval over images of every figure above; None where a figure has none.
        captions: the part of each caption, in the order given.
        resamples, seed: number of bootstrap resamples and seed of the draws.
        vocabulary, vocabulary_sha256: name and SHA-256 of the vocabulary whose words were looked for; scores of different
            vocabularies must not be compared.
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
    # Two files of one name may hold different words, so that the digest decides whether scores can be compared.
    vocabulary: str = "coco"
    vocabulary_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as values that JSON can hold, with the captions in the order given."""
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
    """Return the ratio, or None where the denominator is zero."""
    # None instead of 0, which would be the best CHAIR there is, and instead of NaN, which JSON cannot hold.
    return numerator / denominator if denominator else None
