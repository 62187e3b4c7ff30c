"""BEAF: whether a model notices that an object was removed from a picture.

Ye-Bin et al., "BEAF: Observing BEfore-AFter Changes to Evaluate Hallucination in Vision-language Models", ECCV 2024
(arXiv 2407.13442); official code postech-ami/BEAF, beaf_metric.py at 1975f33. The same question is asked about an
original and about edited pictures in which one object of it was painted over. Pairs (original, edited) are of two kinds:

- *removed pairs* ask about the object that was removed: the right answer is yes about the original and no about the edit.

        tu       = yes, then no:  the model noticed the change (true understanding)
        ig       = no, then yes:  wrong both times (ignorance)
        sb_plus  = yes, then yes: stubborn yes, a hallucination
        sb_minus = no, then no:   stubborn no
        unread   = one of the two answers could not be read

  are shares of these pairs; the five add up to 1.
- *other pairs* ask about objects that are never removed ("removed_q" is false): `id` (indecision) is the share of these
  pairs in which one of the two answers is right and the other is wrong.

`f1_tu_id` is the harmonic mean of `tu` and `1 - id`. Accuracy, precision, recall and F1 are over all questions, with yes
as the positive class. All are fractions in [0, 1]; lower is better for `ig`, `sb_plus`, `sb_minus`, `unread` and `id`.

An answer that cannot be read is wrong: it lowers accuracy and recall. A removed pair with such an answer is `unread`: it is
in none of the four classes but in their denominator. In another pair, an unreadable answer beside a right one counts as
indecision. A question that the model failed to answer is not scored, nor is its pair; both are counted.

This module departs from the official code in three ways. It counts questions and pairs from the files, where the script
has the constants 26,118 and 1,727 and refuses any other version of its own data. It reads answers by the `strict` rule
unless another is asked for (the script's rule is `beaf`, also called `official` here). It matches answers by id, not by
order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keepsight.eval.beaf.files import Question, originals
from keepsight.eval.chair.report import Interval, divide
from keepsight.eval.errors import EmptyFile, UnmatchedAnswers
from keepsight.eval.image_ids import ImageId
from keepsight.eval.pope.answer_parsers import check_parser
from keepsight.eval.pope.score import METRICS as BINARY
from keepsight.eval.pope.score import Counts, Judged, Reply
from keepsight.eval.pope.score import score as score_binary
from keepsight.eval.stats.bootstrap import Matrix, combined_interval, joint_intervals

CHANGES = ("tu", "ig", "sb_plus", "sb_minus", "unread")
"""The classes of removed pairs, as the docstring of the module explains them."""
METRICS = (*CHANGES, "id", "f1_tu_id", "accuracy", "precision", "recall", "f1")
"""Every figure, in the order in which figures are printed."""
PARSERS = ("strict", "official")
"""The two rules that the command for BEAF names first; `official` is `answer_parsers.beaf`, the rule of BEAF's script."""

# The class of a removed pair by the answer about the original and the answer about the edit.
_CLASSES = {("yes", "no"): "tu", ("no", "yes"): "ig", ("yes", "yes"): "sb_plus", ("no", "no"): "sb_minus"}


@dataclass(frozen=True, kw_only=True)
class BeafReport:
    """A BEAF score. Rates are fractions in [0, 1], or None where there was nothing to count.

    Attributes:
        parser: the rule that read the answers; see `answer_parsers.PARSERS`.
        originals: number of originals about which, or about an edit of which, an answer was scored.
        images: number of pictures, originals and edits together, with a scored answer.
        removed_pairs, other_pairs: numbers of scored pairs of the two kinds, which are the denominators.
        failed: number of questions that the model failed to answer; they are not scored.
        missing: number of questions without an answer; they are not scored.
        dropped_pairs: number of pairs that are left out because one of their answers failed or is missing.
        counts: numbers of true and false yes and no, and of unreadable answers.
        values: the value of each of `METRICS`.
        ci: 95 % bootstrap interval of each figure; originals are drawn, each with all its edits.
        replies: each scored answer and how it was read, in the order of the questions; `image` is the original.
        resamples, seed: number of bootstrap resamples and seed of the draws.
    """

    parser: str
    originals: int
    images: int
    removed_pairs: int
    other_pairs: int
    failed: int
    missing: int
    dropped_pairs: int
    counts: Counts
    values: Mapping[str, float | None]
    ci: Mapping[str, Interval | None]
    replies: tuple[Judged, ...]
    resamples: int
    seed: int

    @property
    def n(self) -> int:
        """Number of questions that were scored."""
        return self.counts.n

    def to_json(self) -> dict[str, Any]:
        """Return the figures, without the answers, as values that JSON can hold."""
        counts = self.counts
        return {
            "bench": "beaf",
            "parser": self.parser,
            "n": self.n,
            "originals": self.originals,
            "images": self.images,
            "removed_pairs": self.removed_pairs,
            "other_pairs": self.other_pairs,
            "unparsed": counts.unparsed,
            "failed": self.failed,
            "missing": self.missing,
            "dropped_pairs": self.dropped_pairs,
            "tp": counts.tp,
            "fp": counts.fp,
            "tn": counts.tn,
            "fn": counts.fn,
            **self.values,
            "ci": {name: None if bounds is None else list(bounds) for name, bounds in self.ci.items()},
            "resamples": self.resamples,
            "seed": self.seed,
        }


def rule(parser: str) -> str:
    """Return the name in `answer_parsers.PARSERS` of a rule; here `official` stands for BEAF's rule and not for POPE's.

    Raises:
        UnknownParser: no rule has this name; the message suggests the nearest.
    """
    return check_parser("beaf" if parser == "official" else parser).name


def score(
    questions: Sequence[Question],
    answers: Mapping[ImageId, str | None],
    parser: str = "strict",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> BeafReport:
    """Score the answers to BEAF's questions.

    The cost is a second for 12,000 answers, most of it for the `strict` rule and the bootstrap.

    Args:
        questions: the questions, among them the original of every edited picture, as `beaf.files.read_questions` checks.
        answers: the answers by the questions' ids; None where the model failed. A question whose id is not among them
            counts as missing.
        parser: `strict`, `official` (BEAF's rule), or another of `answer_parsers.PARSERS`. BEAF's rule reads an answer
            with neither word as it read the answer before it, in the order of `questions`.
        resamples: number of bootstrap resamples of the originals; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        EmptyFile: there is no answer that can be scored.
        UnmatchedAnswers: an answer belongs to none of the questions.
        MissingOriginal: an edited picture has no original, or its original is not asked the same question.
        UnknownParser: no rule has this name.
    """
    name = rule(parser)
    twins = originals(questions)
    stray = answers.keys() - {one.id for one in questions}
    if stray:
        raise UnmatchedAnswers(f"there is no question {min(stray, key=str)!r} to an answer")
    scored = [one for one in questions if answers.get(one.id) is not None]
    if not scored:
        raise EmptyFile("no question of BEAF has an answer that could be scored")
    # The original stands for the picture, so that the bootstrap draws an original together with all its edits.
    # Failed answers were left out above: `or ""` only satisfies the type checker.
    replies = [
        Reply(question_id=one.id, image=one.original, label=one.label, answer=answers[one.id] or "")
        for one in scored
    ]
    # The replies stand in the order of the questions, which BEAF's rule for unreadable answers depends on.
    binary = score_binary(replies, name, resamples=resamples, seed=seed)
    judged = {reply.question_id: reply for reply in binary.replies}
    # Sorting makes the draws independent of the order of the questions.
    places = {image: at for at, image in enumerate(sorted({one.original for one in scored}))}
    # A row of sums for each original: the five classes, removed pairs, pairs with indecision, other pairs.
    sums = np.zeros((len(places), len(CHANGES) + 3))
    dropped = 0
    for one in questions:
        if not one.edited:
            continue
        before, after = judged.get(twins[one.id].id), judged.get(one.id)
        removed = one.removable and twins[one.id].label == "yes" and one.label == "no"
        if one.removable and not removed:
            continue  # this edit is without another object of the picture, so that the pair is of neither kind
        if before is None or after is None:
            dropped += 1
            continue
        row = sums[places[one.original]]
        if removed:
            row[CHANGES.index(_change(before, after))] += 1
            row[-3] += 1
        else:
            # An unreadable answer equals no label and is therefore wrong.
            row[-2] += (before.decision == before.label) != (after.decision == after.label)
            row[-1] += 1
    values, ci = _pair_figures(sums, resamples, seed)
    return BeafReport(
        parser=name,
        originals=len(places),
        images=len({one.image for one in scored}),
        removed_pairs=int(sums[:, -3].sum()),
        other_pairs=int(sums[:, -1].sum()),
        # Every answer belongs to a question, as was checked above, so that `missing` counts the questions without one.
        failed=sum(answer is None for answer in answers.values()),
        missing=len(questions) - len(answers),
        dropped_pairs=dropped,
        counts=binary.counts,
        # BEAF reports all figures of `pope.score` but the share of yes.
        values=values | {figure: getattr(binary, figure) for figure in BINARY if figure in METRICS},
        ci=ci | {figure: bounds for figure, bounds in binary.ci.items() if figure in METRICS},
        replies=binary.replies,
        resamples=resamples,
        seed=seed,
    )


def _change(before: Judged, after: Judged) -> str:
    """Return which of `CHANGES` a removed pair is."""
    if before.decision is None or after.decision is None:
        return "unread"
    return _CLASSES[before.decision, after.decision]


def _pair_figures(
    sums: Matrix, resamples: int, seed: int
) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
    """Return the figures of the pairs and their intervals, from a matrix (originals, sums)."""
    total = [int(value) for value in sums.sum(axis=0)]
    values = {name: divide(total[at], total[-3]) for at, name in enumerate(CHANGES)}
    values["id"] = divide(total[-2], total[-1])
    values["f1_tu_id"] = harmonic(values["tu"], values["id"])
    parts = {name: (sums[:, at], sums[:, -3]) for at, name in enumerate(CHANGES)}
    parts["id"] = sums[:, -2], sums[:, -1]
    bounds = joint_intervals(list(parts.values()), resamples=resamples, seed=seed)
    ci = dict(zip(parts, bounds, strict=True))
    # The harmonic mean is no ratio of sums: it is made of two ratios in every resample.
    ci["f1_tu_id"] = combined_interval([parts["tu"], parts["id"]], _harmonics, resamples=resamples, seed=seed)
    return values, ci


def harmonic(tu: float | None, indecision: float | None) -> float | None:
    """Return the harmonic mean of `tu` and `1 - id`, or None where one of the two is None.

    >>> round(harmonic(0.5964, 0.0233), 4)
    0.7406
    """
    if tu is None or indecision is None:
        return None
    firm = 1 - indecision
    return 2 * tu * firm / (tu + firm) if tu + firm else 0.0


def _harmonics(ratios: Matrix) -> Any:
    """Return `harmonic` of every resample, (resamples,), from the ratios `tu` and `id`, (resamples, 2)."""
    tu, firm = ratios[:, 0], 1 - ratios[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(tu + firm == 0, 0.0, 2 * tu * firm / (tu + firm))
