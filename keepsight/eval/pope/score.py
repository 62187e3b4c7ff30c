"""Score yes-or-no questions: accuracy, precision, recall, F1 and the share of yes among the answers, with intervals.

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
    """The answer of a model to a question whose right answer is known.

    Attributes:
        question_id: the id of the question, unique among the replies that are scored together.
        image: the picture asked about; the bootstrap draws pictures.
        label: the right answer.
        answer: the text of the model's answer, unchanged.
    """

    question_id: ImageId
    image: ImageId
    label: Answer
    answer: str


@dataclass(frozen=True, kw_only=True)
class Judged(Reply):
    """A reply and how its answer was read; `decision` is None where the answer could not be read."""

    decision: Decision

    def to_json(self) -> dict[str, Any]:
        """Return the reply as values that JSON can hold."""
        return {
            "question_id": self.question_id,
            "image": self.image,
            "label": self.label,
            "answer": self.answer,
            "decision": self.decision,
        }


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many replies of each kind there are; the six kinds add up to `n`.

    Attributes:
        tp, fp, tn, fn: replies that were read, with yes as the positive class.
        unparsed_yes, unparsed_no: unreadable replies to questions whose right answer is yes, and no.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    unparsed_yes: int
    unparsed_no: int

    @property
    def n(self) -> int:
        """Number of all replies."""
        return self.tp + self.fp + self.tn + self.fn + self.unparsed

    @property
    def unparsed(self) -> int:
        """Number of replies that could not be read."""
        return self.unparsed_yes + self.unparsed_no


# Every figure is a sum over replies divided by another, so that the bootstrap only has to add up the sums of the pictures
# that it draws. This is why F1 is written with counts here instead of as the harmonic mean of precision and recall.
# An unreadable answer is wrong and neither yes nor no: it counts in the denominators of accuracy and yes_ratio, and in
# recall as a yes that was missed, but not in precision.
METRICS: Mapping[str, tuple[Callable[[Counts], int], Callable[[Counts], int]]] = {
    "accuracy": (lambda c: c.tp + c.tn, lambda c: c.n),
    "precision": (lambda c: c.tp, lambda c: c.tp + c.fp),
    "recall": (lambda c: c.tp, lambda c: c.tp + c.fn + c.unparsed_yes),
    "f1": (lambda c: 2 * c.tp, lambda c: 2 * c.tp + c.fp + c.fn + c.unparsed_yes),
    "yes_ratio": (lambda c: c.tp + c.fp, lambda c: c.n),
}
"""The numerator and the denominator of each figure. `YesNoReport` says what the figures mean."""


@dataclass(frozen=True, kw_only=True)
class YesNoReport:
    """A score of yes-or-no answers. Rates are fractions in [0, 1], or None where there was nothing to count.

    Attributes:
        parser: the rule that read the answers; see `answer_parsers.PARSERS`.
        counts: numbers of true and false yes and no, and of unreadable answers.
        accuracy: share of right answers among all; an unreadable answer is wrong.
        precision: share of right answers among the answers that were read as yes.
        recall: share of answers read as yes among the questions whose right answer is yes, unreadable answers included.
        f1: harmonic mean of precision and recall.
        yes_ratio: share of answers read as yes among all answers (not among the right answers).
        ci: 95 % bootstrap interval over pictures of each figure.
        replies: each reply with its decision, in the order given.
        resamples, seed: number of bootstrap resamples and seed of the draws.
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
        """Return the figures, without the replies, as values that JSON can hold."""
        return {"n": self.n, **_counts_json(self.counts), **_figures_json(self, self.ci)}


@dataclass(frozen=True, kw_only=True)
class MeanReport:
    """The arithmetic mean of the figures of several splits, as papers quote it; None where one split has no figure.

    The mean of three F1 differs from the F1 of all answers together. A resample draws the same pictures for all splits.
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
        """Return the figures as values that JSON can hold."""
        head = {"splits": list(self.splits), "n": self.n, "unparsed": self.unparsed}
        return head | _figures_json(self, self.ci)


def score(
    replies: Sequence[Reply], parser: str = "strict", *, resamples: int = 1000, seed: int = 0
) -> YesNoReport:
    """Read every answer by a rule, and score.

    The cost is less than a second for 10,000 answers, most of it for the bootstrap.

    Args:
        replies: the answers with their questions' ids, pictures and right answers.
        parser: the rule that reads the answers, one of `answer_parsers.PARSERS`.
        resamples: number of bootstrap resamples of the pictures; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        EmptyFile: there is no reply.
        UnknownParser: no rule has this name.
        InvalidParameter: a question comes twice.
    """
    if not replies:
        raise EmptyFile("there is no answer to score")
    # A question with two replies would count twice.
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
    # Every call draws the same pictures, since all have the same seed.
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
    """Count the replies of each kind."""
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
    """Return the arithmetic mean over splits, whose intervals use the resamples and the seed of the first split.

    Args:
        reports: the score of each split, by the name of the split.

    Raises:
        EmptyFile: there is no split.
        UnpairedReports: the splits were read by different rules.
    """
    if not reports:
        raise EmptyFile("there is no split to take a mean of")
    some = next(iter(reports.values()))
    if len({report.parser for report in reports.values()}) > 1:
        raise UnpairedReports("scores of different parsers have no common mean; score all with one parser")
    # The splits of POPE ask about the same pictures. All are drawn together, so that what makes a picture hard moves the
    # figures of all splits in the same resamples; a picture that a split lacks adds zeros to its sums.
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
    """Return the change of a figure from `a` to `b` on the same questions, with its 95 % interval.

    The figure is the mean over splits. Both sides are recomputed on the same drawn pictures, so that what makes a picture
    hard for both cancels.

    Args:
        a, b: the scores of the same splits, by the names of the splits.
        metric: one of `METRICS`.
        resamples: number of bootstrap resamples of the pictures; 0 gives no interval.
        seed: seed of the bootstrap.

    Returns:
        The change `b - a`; its value is None where one side has no value.

    Raises:
        UnpairedReports: the two sides differ in their splits, their parsers or the questions of a split.
        InvalidParameter: there is no figure of this name.
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
    """Raise `UnpairedReports` unless both reports are of the same parser and the same questions."""
    if a.parser != b.parser:
        raise UnpairedReports(
            f"answers read by {a.parser!r} and by {b.parser!r} cannot be compared; score both with one parser"
        )
    # The ids alone would not do, since POPE's splits share them.
    first, second = ({(r.question_id, r.image, r.label) for r in side.replies} for side in (a, b))
    if first != second:
        raise UnpairedReports(
            f"{split}: {len(first ^ second)} questions are not the same; score both on the same questions"
        )


def _images(groups: Sequence[Sequence[Reply]]) -> dict[Hashable, int]:
    """Number the pictures of all groups, in an order that does not depend on the order of the replies."""
    # Ids may be numbers and names, which Python cannot compare. The type tells 7 from "7", which are the same as text.
    named = {reply.image for group in groups for reply in group}
    return {
        image: at for at, image in enumerate(sorted(named, key=lambda name: (str(name), str(type(name)))))
    }


def _sums(replies: Sequence[Judged], images: Mapping[Hashable, int], metric: str) -> Sums:
    """Return the numerator and the denominator of a figure for each picture, two arrays (pictures,)."""
    numerator, denominator = METRICS[metric]
    top, bottom = np.zeros(len(images)), np.zeros(len(images))
    # A reply adds the same to a figure as every other reply of its kind, and there are only six kinds.
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
    """Return the mean, or None if one of the values is None."""
    known = [value for value in values if value is not None]
    # A mean over the remaining splits would be a figure of something else.
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _counts_json(counts: Counts) -> dict[str, int]:
    """Return the counts as values that JSON can hold."""
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
    """Return the figures and their intervals as values that JSON can hold."""
    return {
        **{name: getattr(report, name) for name in METRICS},
        "ci": {name: None if bounds is None else list(bounds) for name, bounds in ci.items()},
    }
