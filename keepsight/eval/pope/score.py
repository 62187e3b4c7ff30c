"""Scores of yes-or-no questions: accuracy, precision, recall, F1 and how often yes is said, with intervals.

"Yes" is the positive class. An answer that could not be read is wrong, and is neither a yes nor a no.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.eval.chair.report import Interval, divide
from keepsight.eval.errors import EmptyFile, UnpairedReports
from keepsight.eval.image_ids import ImageId
from keepsight.eval.pope.answer_parsers import Answer, Decision, decide
from keepsight.eval.stats.bootstrap import Difference, mean_interval

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered to a question whose answer is known: what is scored.

    Attributes:
        question_id: unique among the replies scored together.
        image: the picture asked about; the bootstrap draws pictures.
        label: the right answer.
        answer: the model's text, as it came.
    """

    question_id: ImageId
    image: ImageId
    label: Answer
    answer: str


@dataclass(frozen=True, kw_only=True)
class Judged(Reply):
    """A reply and what its answer was read as; None where it could not be read."""

    decision: Decision

    def to_json(self) -> dict[str, Any]:
        """The reply as JSON can hold it."""
        return {
            "question_id": self.question_id,
            "image": self.image,
            "label": self.label,
            "answer": self.answer,
            "decision": self.decision,
        }


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many replies of each kind there are; the six kinds add up to `n`."""

    tp: int
    fp: int
    tn: int
    fn: int
    unparsed_yes: int
    unparsed_no: int

    @property
    def n(self) -> int:
        """All replies."""
        return self.tp + self.fp + self.tn + self.fn + self.unparsed

    @property
    def unparsed(self) -> int:
        """Replies that could not be read; `unparsed_yes` of them should have been yes."""
        return self.unparsed_yes + self.unparsed_no


# Every figure is one sum over another, so that the bootstrap can draw pictures.
METRICS: Mapping[str, tuple[Callable[[Counts], int], Callable[[Counts], int]]] = {
    "accuracy": (lambda c: c.tp + c.tn, lambda c: c.n),
    "precision": (lambda c: c.tp, lambda c: c.tp + c.fp),
    "recall": (lambda c: c.tp, lambda c: c.tp + c.fn + c.unparsed_yes),
    "f1": (lambda c: 2 * c.tp, lambda c: 2 * c.tp + c.fp + c.fn + c.unparsed_yes),
    "yes_ratio": (lambda c: c.tp + c.fp, lambda c: c.n),
}
"""Each figure's numerator and denominator. `YesNoReport` says what they mean."""


@dataclass(frozen=True, kw_only=True)
class YesNoReport:
    """A score. Rates are fractions in [0, 1], None where nothing could be counted.

    Attributes:
        parser: the rule that read the answers; see `answer_parsers.PARSERS`.
        counts: true and false, yes and no, and the unreadable.
        accuracy: right answers among all; an unreadable one is wrong.
        precision: right yeses among the yeses.
        recall: right yeses among the questions whose answer is yes, unreadable answers included.
        f1: harmonic mean of precision and recall.
        yes_ratio: yeses said among all answers (not among the labels).
        ci: 95 % bootstrap interval over pictures of each figure.
        replies: each reply with its decision, in the order given.
    """

    parser: str
    counts: Counts
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float | None
    ci: Mapping[str, Interval | None]
    replies: tuple[Judged, ...]
    resamples: int
    seed: int

    @property
    def n(self) -> int:
        """Number of replies scored."""
        return self.counts.n

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON can hold them, without the replies."""
        return {"n": self.n, **_counts_json(self.counts), **_figures_json(self, self.ci)}


@dataclass(frozen=True, kw_only=True)
class MeanReport:
    """The plain mean of several reports' figures, as papers quote it; None where one of them has none.

    The mean of three F1 is not the F1 of all answers together. Intervals draw the same pictures for all reports.
    """

    splits: tuple[str, ...]
    n: int
    unparsed: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float | None
    ci: Mapping[str, Interval | None]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        head = {"splits": list(self.splits), "n": self.n, "unparsed": self.unparsed}
        return head | _figures_json(self, self.ci)


def score(
    replies: Sequence[Reply], parser: str = "strict", *, resamples: int = 1000, seed: int = 0
) -> YesNoReport:
    """Read every answer by a rule and count.

    Cost: 10,000 answers take less than a second, most of it the bootstrap (`resamples`, 0 for none; `seed`).
    Raises `EmptyFile` for no reply, `UnknownParser`, and `InvalidParameter` for a question that comes twice.
    """
    if not replies:
        raise EmptyFile("there is no answer to score")
    if len({reply.question_id for reply in replies}) != len(replies):
        raise InvalidParameter("a question was answered twice: keep one reply for each question_id")
    decisions = decide([reply.answer for reply in replies], [reply.label for reply in replies], parser)
    judged = tuple(
        Judged(
            question_id=reply.question_id,
            image=reply.image,
            label=reply.label,
            answer=reply.answer,
            decision=decision,
        )
        for reply, decision in zip(replies, decisions, strict=True)
    )
    counts = count(judged)
    images = _images([judged])
    ci = {
        name: mean_interval([_sums(judged, images, name)], resamples=resamples, seed=seed) for name in METRICS
    }
    return YesNoReport(
        parser=parser,
        counts=counts,
        **{name: divide(top(counts), bottom(counts)) for name, (top, bottom) in METRICS.items()},
        ci=ci,
        replies=judged,
        resamples=resamples,
        seed=seed,
    )


def count(replies: Sequence[Judged]) -> Counts:
    """How many replies of each kind there are."""
    kinds = [(reply.label, reply.decision) for reply in replies]
    return Counts(
        tp=kinds.count(("yes", "yes")),
        fp=kinds.count(("no", "yes")),
        tn=kinds.count(("no", "no")),
        fn=kinds.count(("yes", "no")),
        unparsed_yes=kinds.count(("yes", None)),
        unparsed_no=kinds.count(("no", None)),
    )


def mean(reports: Mapping[str, YesNoReport]) -> MeanReport:
    """The plain mean over splits. Raises `EmptyFile` without any, `UnpairedReports` where parsers differ."""
    if not reports:
        raise EmptyFile("there is no split to take a mean of")
    some = next(iter(reports.values()))
    if len({report.parser for report in reports.values()}) > 1:
        raise UnpairedReports("scores of different parsers have no common mean; score all with one parser")
    images = _images([report.replies for report in reports.values()])
    values = {name: _mean([getattr(report, name) for report in reports.values()]) for name in METRICS}
    ci = {
        name: None
        if values[name] is None
        else mean_interval(
            [_sums(report.replies, images, name) for report in reports.values()],
            resamples=some.resamples,
            seed=some.seed,
        )
        for name in METRICS
    }
    return MeanReport(
        splits=tuple(reports),
        n=sum(report.n for report in reports.values()),
        unparsed=sum(report.counts.unparsed for report in reports.values()),
        **values,
        ci=ci,
    )


def paired(
    a: Mapping[str, YesNoReport],
    b: Mapping[str, YesNoReport],
    metric: str = "f1",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """The change of a figure from `a` to `b` on the same questions: `b - a`, with its 95 % interval.

    Both map splits to reports; the change is that of the mean over splits, and with one split that split's own.
    Both sides are recomputed on the same drawn pictures, so that what makes a picture hard for both cancels.

    Raises `UnpairedReports` unless the splits, the parsers and each split's questions are the same,
    `InvalidParameter` for an unknown metric. The value is None where one side has none.
    """
    if metric not in METRICS:
        raise InvalidParameter(f"no figure is called {metric!r}; {did_you_mean(metric, METRICS)}")
    if not a or a.keys() != b.keys():
        raise UnpairedReports(f"different splits cannot be compared: {sorted(a)} and {sorted(b)}")
    for split in a:
        _check_pair(split, a[split], b[split])
    before, after = (_mean([getattr(report, metric) for report in side.values()]) for side in (a, b))
    if before is None or after is None:
        return Difference(metric, None, None, None)
    images = _images([report.replies for report in a.values()])
    first, second = ([_sums(side[split].replies, images, metric) for split in a] for side in (a, b))
    bounds = mean_interval(second, minus=first, resamples=resamples, seed=seed)
    return Difference(metric, after - before, *(bounds or (None, None)))


def _check_pair(split: str, a: YesNoReport, b: YesNoReport) -> None:
    if a.parser != b.parser:
        raise UnpairedReports(
            f"answers read by {a.parser!r} and by {b.parser!r} cannot be compared; score both with one parser"
        )
    first, second = ({(r.question_id, r.image, r.label) for r in side.replies} for side in (a, b))
    if first != second:
        raise UnpairedReports(
            f"{split}: {len(first ^ second)} questions are not the same; score both on the same questions"
        )


def _images(groups: Sequence[Sequence[Reply]]) -> dict[Hashable, int]:
    """The pictures of all groups, numbered in an order that the order of the replies does not change."""
    named = {reply.image for group in groups for reply in group}
    return {
        image: at for at, image in enumerate(sorted(named, key=lambda name: (str(name), str(type(name)))))
    }


def _sums(replies: Sequence[Judged], images: Mapping[Hashable, int], metric: str) -> Sums:
    """A figure's numerator and denominator for each picture."""
    numerator, denominator = METRICS[metric]
    top, bottom = np.zeros(len(images)), np.zeros(len(images))
    share: dict[tuple[Answer, Decision], tuple[int, int]] = {}
    for reply in replies:
        kind = (reply.label, reply.decision)
        if kind not in share:
            one = count([reply])
            share[kind] = numerator(one), denominator(one)
        at = images[reply.image]
        top[at] += share[kind][0]
        bottom[at] += share[kind][1]
    return top, bottom


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _counts_json(counts: Counts) -> dict[str, int]:
    return {
        "tp": counts.tp,
        "fp": counts.fp,
        "tn": counts.tn,
        "fn": counts.fn,
        "unparsed": counts.unparsed,
        "unparsed_yes": counts.unparsed_yes,
        "unparsed_no": counts.unparsed_no,
    }


def _figures_json(report: YesNoReport | MeanReport, ci: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {
        **{name: getattr(report, name) for name in METRICS},
        "ci": {name: None if bounds is None else list(bounds) for name, bounds in ci.items()},
    }
