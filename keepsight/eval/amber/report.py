"""The parts of an AMBER score, and how its figures are made of sums over responses; `amber.score` says what they mean."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keepsight.eval.chair.report import Interval, divide
from keepsight.eval.pope.answer_parsers import Decision
from keepsight.eval.stats.bootstrap import Matrix, combined_interval, joint_intervals

CONVENTIONS = ("exact", "official")
"""The two ways to make figures of counts, which the docstring of `amber.score` explains."""
# The official script adds counts to the values in data/metrics.txt, where denominators start from this instead of zero.
_EPSILON = 0.001
GENERATIVE = ("chair", "cover", "hal", "cog")
DISCRIMINATIVE = ("accuracy", "precision", "recall", "f1")
TYPES: Mapping[str, tuple[str, ...]] = {
    "all": ("existence", "state", "number", "action", "relation"),
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "state": ("state",),
    "number": ("number",),
    "action": ("action",),
    "relation": ("relation",),
}
"""The rows of the table of answers, and the types of questions in each row."""

Values = Mapping[str, float | None]
Bounds = Mapping[str, Interval | None]


@dataclass(frozen=True, kw_only=True)
class Described:
    """The judged nouns of one description, and which annotated objects they name.

    Attributes:
        id: the id of the annotation.
        nouns: the nouns that are words of the relations, in order.
        hallucinated: those of them that are not in the picture, in order.
        covered: for each object in the picture, whether a noun names it.
        marked: for each object that models tend to imagine in the picture, whether a noun names it.
    """

    id: int
    nouns: tuple[str, ...]
    hallucinated: tuple[str, ...]
    covered: tuple[bool, ...]
    marked: tuple[bool, ...]

    @property
    def sums(self) -> tuple[tuple[int, int], ...]:
        """The numerator and the denominator that the response adds to each of `GENERATIVE`."""
        return (
            (len(self.hallucinated), len(self.nouns)),
            (sum(self.covered), len(self.covered)),
            (int(bool(self.hallucinated)), 1),
            (sum(self.marked), len(self.marked)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the response as values that JSON can hold."""
        return {
            "id": self.id,
            "nouns": list(self.nouns),
            "hallucinated": list(self.hallucinated),
            "covered": list(self.covered),
            "marked": list(self.marked),
        }


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer to a yes-or-no question; `decision` is None where it could not be read."""

    id: int
    type: str
    label: str
    answer: str
    decision: Decision

    @property
    def sums(self) -> tuple[tuple[int, int], ...]:
        """The numerator and the denominator that the answer adds to each of `DISCRIMINATIVE`."""
        # "No" is the positive class of AMBER. F1 is written with counts, so that it is a ratio of sums like the others.
        said, meant = self.decision == "no", self.label == "no"
        right = int(said and meant)
        return (
            (int(self.decision == self.label), 1),
            (right, int(said)),
            (right, int(meant)),
            (2 * right, int(said) + int(meant)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer as values that JSON can hold."""
        return {
            "id": self.id,
            "type": self.type,
            "label": self.label,
            "answer": self.answer,
            "decision": self.decision,
        }


@dataclass(frozen=True, kw_only=True)
class Part:
    """The figures of one kind of responses.

    Attributes:
        n: number of scored responses.
        unparsed: number of answers that could not be read.
        values: each figure by its name, a fraction in [0, 1] or None.
        ci: the 95 % bootstrap interval of each figure by its name, or None.
    """

    n: int
    unparsed: int
    values: Values
    ci: Bounds


@dataclass(frozen=True, kw_only=True)
class AmberReport:
    """An AMBER score.

    Attributes:
        convention, similarity, parser: the choices that the figures depend on; `parser` is the rule that read the answers.
        generative: the figures of the descriptions; None without descriptions.
        discriminative: the figures of the answers, for each of `TYPES` that has an answer; empty without answers.
        amber_score: a fraction in [0, 1]; None unless there are descriptions and answers.
        amber_score_ci: its 95 % interval; None without a score and where the pictures of the questions are not known.
        described, answered: every scored response, in the order given.
        total: numbers of descriptions and of questions in the annotations.
        failed: numbers of descriptions and of questions that the model failed on; they are not scored.
        unit: what the intervals of answers draw: "image" or, where the pictures are not known, "question".
        resamples, seed: number of bootstrap resamples and seed of the draws.
    """

    convention: str
    similarity: str
    parser: str
    generative: Part | None
    discriminative: Mapping[str, Part]
    amber_score: float | None
    amber_score_ci: Interval | None
    described: tuple[Described, ...]
    answered: tuple[Answered, ...]
    total: tuple[int, int]
    failed: tuple[int, int]
    unit: str
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the whole report as values that JSON can hold, with the responses in the order given."""
        described, questions = self.total
        generative = None
        if self.generative is not None:
            generative = {
                "n": self.generative.n,
                "of": described,
                "failed": self.failed[0],
                **self.generative.values,
                "ci": _listed(self.generative.ci),
                "responses": [one.to_json() for one in self.described],
            }
        discriminative = None
        if self.discriminative:
            rows = self.discriminative
            discriminative = {
                "parser": self.parser,
                "n": rows["all"].n,
                "of": questions,
                "failed": self.failed[1],
                "unparsed": rows["all"].unparsed,
                "unit": self.unit,
                "types": {
                    name: {"n": row.n, "unparsed": row.unparsed, **row.values, "ci": _listed(row.ci)}
                    for name, row in rows.items()
                },
                "answers": [one.to_json() for one in self.answered],
            }
        return {
            "bench": "amber",
            "convention": self.convention,
            "similarity": self.similarity,
            "generative": generative,
            "discriminative": discriminative,
            "amber_score": self.amber_score,
            "amber_score_ci": None if self.amber_score_ci is None else list(self.amber_score_ci),
            "resamples": self.resamples,
            "seed": self.seed,
        }


def part(
    scored: Sequence[Described] | Sequence[Answered],
    pictures: Mapping[int, Hashable],
    *,
    official: bool = False,
    kind: str = "all",
    resamples: int = 1000,
    seed: int = 0,
) -> Part:
    """Return the figures of some descriptions, or of some answers.

    Args:
        scored: one response or more, all of one class.
        pictures: the picture of each id; the bootstrap draws pictures.
        official: whether the values are those that the official script prints; the intervals are exact in any case.
        kind: the row of `TYPES` that the answers belong to, since the official F1 differs between rows.
        resamples: number of bootstrap resamples; 0 gives no intervals.
        seed: seed of the bootstrap.
    """
    names = GENERATIVE if isinstance(scored[0], Described) else DISCRIMINATIVE
    sums = _sums(scored, _places(scored, pictures), pictures)
    total = [(int(top), int(bottom)) for top, bottom in sums.sum(axis=1)]
    values = (
        _official(names, total, kind)
        if official
        else {name: divide(*pair) for name, pair in zip(names, total, strict=True)}
    )
    bounds = joint_intervals([(pair[:, 0], pair[:, 1]) for pair in sums], resamples=resamples, seed=seed)
    unparsed = sum(isinstance(one, Answered) and one.decision is None for one in scored)
    return Part(n=len(scored), unparsed=unparsed, values=values, ci=dict(zip(names, bounds, strict=True)))


def score_interval(
    described: Sequence[Described],
    answered: Sequence[Answered],
    pictures: Mapping[int, Hashable],
    *,
    resamples: int,
    seed: int,
) -> Interval | None:
    """Return the interval of the AMBER score, for which the same pictures are drawn for both of its parts."""
    places = _places([*described, *answered], pictures)
    chair = _sums(described, places, pictures)[GENERATIVE.index("chair")]
    f1 = _sums(answered, places, pictures)[DISCRIMINATIVE.index("f1")]

    def combine(ratios: Matrix) -> Matrix:
        """Return the score of each resample from its CHAIR and its F1."""
        return (1 - ratios[:, 0] + ratios[:, 1]) / 2

    sides = [(chair[:, 0], chair[:, 1]), (f1[:, 0], f1[:, 1])]
    return combined_interval(sides, combine, resamples=resamples, seed=seed)


def _places(scored: Sequence[Described | Answered], pictures: Mapping[int, Hashable]) -> dict[Hashable, int]:
    """Number the pictures, in an order that does not depend on the order of the responses."""
    # Pictures are ids or file names, which are sorted as text.
    return {image: at for at, image in enumerate(sorted({pictures[one.id] for one in scored}, key=str))}


def _sums(
    scored: Sequence[Described] | Sequence[Answered],
    places: Mapping[Hashable, int],
    pictures: Mapping[int, Hashable],
) -> Matrix:
    """Return the numerator and the denominator of each figure for each picture, an array (figures, pictures, 2)."""
    sums = np.zeros((4, len(places), 2))  # descriptions and answers have four figures each
    for one in scored:
        sums[:, places[pictures[one.id]]] += one.sums
    return sums


def _official(names: Sequence[str], total: Sequence[tuple[int, int]], kind: str) -> dict[str, float | None]:
    """Return the figures as the official script rounds them, as fractions; its F1 is made of rounded figures."""
    percent: dict[str, float] = {}
    for name, (top, bottom) in zip(names, total, strict=True):
        if (
            name == "hal"
        ):  # the script counts responses without a hallucination and takes their share from 100
            percent[name] = round(100 - (bottom - top) / (bottom + _EPSILON) * 100, 1)
        elif name == "f1":
            # `DISCRIMINATIVE` names F1 last, so that the figures that it is made of are known here.
            p, r = percent["precision"] / 100, percent["recall"] / 100
            below = 0.001 if kind == "existence" else 0.0001  # the script has both, and no other difference
            percent[name] = round(2 * p * r / (p + r + below) * 100, 1)
        else:
            percent[name] = round(top / (bottom + _EPSILON) * 100, 1)
    # They are rounded once more, since 0.7 / 100 is not the float closest to 0.007.
    return {name: round(value / 100, 3) for name, value in percent.items()}


def _listed(ci: Bounds) -> dict[str, list[float] | None]:
    """Return the intervals as values that JSON can hold."""
    return {name: None if bounds is None else list(bounds) for name, bounds in ci.items()}
