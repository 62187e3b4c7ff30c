"""BEAF: does a model notice when an object is taken out of a picture?

Ye-Bin et al., "BEAF: Observing BEfore-AFter Changes to Evaluate Hallucination in Vision-language Models", ECCV 2024
(arXiv 2407.13442); official code postech-ami/BEAF, beaf_metric.py at 1975f33. The same question is asked about an
original and about edited pictures in which one object of it was painted over. Two kinds of pairs (original, edited):

- *removed pairs*: the answer is yes about the original and no about the edited picture, whose object it was.

        tu       = yes, then no:  the change was seen (true understanding)
        ig       = no, then yes:  wrong both times (ignorance)
        sb_plus  = yes, then yes: stubborn yes, a hallucination
        sb_minus = no, then no:   stubborn no
        unread   = one of the two answers could not be read

  as shares of these pairs; the five add up to 1.
- *other pairs*, about objects that are never taken out ("removed_q" false): `id` (indecision) is the share of them
  where one of the two answers is right and the other is wrong.

`f1_tu_id` is the harmonic mean of `tu` and `1 - id`. Accuracy, precision, recall and F1 are over all questions, yes
positive. All are fractions in [0, 1]; `ig`, `sb_plus`, `sb_minus`, `unread` and `id` are better low.

An answer that cannot be read is wrong: it lowers accuracy and recall; a removed pair with one is `unread`, in none of
the four classes but in their denominator; in another pair, it and a right answer count as a change of mind. An answer
that failed is not scored, nor is its pair; both are counted.

Departs from the official code: numbers of questions and pairs are counted from the files, where the script holds
26,118 and 1,727 fixed and refuses any other version of its own data; answers are read by the `strict` rule unless
another is asked for (the script's is `beaf`, also called `official` here); answers are matched by id, not by order.
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
"""What a removed pair can be. The names follow the module's docstring."""
METRICS = (*CHANGES, "id", "f1_tu_id", "accuracy", "precision", "recall", "f1")
"""Every figure, in the order it is printed."""
PARSERS = ("strict", "official")
"""The two rules that BEAF's command names first; `official` is `answer_parsers.beaf`, the rule of BEAF's own script."""

_CLASSES = {("yes", "no"): "tu", ("no", "yes"): "ig", ("yes", "yes"): "sb_plus", ("no", "no"): "sb_minus"}


@dataclass(frozen=True, kw_only=True)
class BeafReport:
    """A score. Rates are fractions in [0, 1], None where there was nothing to count.

    Attributes:
        parser: the rule that read the answers; see `answer_parsers.PARSERS`.
        originals, images: pictures with a scored answer: originals, and originals and edits together.
        removed_pairs, other_pairs: the denominators of the two kinds of pairs.
        failed: questions that the model failed on; not scored.
        missing: questions without an answer; not scored.
        dropped_pairs: pairs left out because one of their answers failed or is missing.
        counts: right and wrong, yes and no, and the unreadable.
        values: each of `METRICS`.
        ci: 95 % bootstrap interval of each; originals are drawn, with all their edits.
        replies: each scored answer with what it was read as, in the questions' order; `image` is the original.
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
        """Questions scored."""
        return self.counts.n

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON can hold them, without the answers."""
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
    """The name in `answer_parsers.PARSERS` of a parser as BEAF's command names it: `official` is BEAF's, not POPE's.

    Raises `UnknownParser` naming the nearest.
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

    Args:
        questions: with the original of every edited picture, as `beaf.files.read_questions` checks.
        answers: by question id; None where the model failed. A question that is not in it is missing.
        parser: `strict`, `official` (BEAF's own), or another of `answer_parsers.PARSERS`. BEAF's own reads an answer with
            neither word as the one before it, in the order of `questions`.
        resamples, seed: of the bootstrap over originals; 0 resamples for no intervals.

    Cost: 12,000 answers take a second, most of it the `strict` rule and the bootstrap.
    Raises `EmptyFile` for no answer that can be scored, `UnmatchedAnswers` for an answer without a question,
    `MissingOriginal`, and `UnknownParser`.
    """
    name = rule(parser)
    twins = originals(questions)
    stray = answers.keys() - {one.id for one in questions}
    if stray:
        raise UnmatchedAnswers(f"there is no question {min(stray, key=str)!r} to an answer")
    scored = [one for one in questions if answers.get(one.id) is not None]
    if not scored:
        raise EmptyFile("no question of BEAF has an answer that could be scored")
    replies = [
        Reply(question_id=one.id, image=one.original, label=one.label, answer=answers[one.id] or "")
        for one in scored
    ]
    binary = score_binary(replies, name, resamples=resamples, seed=seed)
    judged = {reply.question_id: reply for reply in binary.replies}
    places = {image: at for at, image in enumerate(sorted({one.original for one in scored}))}
    sums = np.zeros((len(places), len(CHANGES) + 3))  # the five, removed pairs, changes of mind, other pairs
    dropped = 0
    for one in questions:
        if not one.edited:
            continue
        before, after = judged.get(twins[one.id].id), judged.get(one.id)
        removed = one.removable and twins[one.id].label == "yes" and one.label == "no"
        if one.removable and not removed:
            continue  # another object of the picture was taken out
        if before is None or after is None:
            dropped += 1
            continue
        row = sums[places[one.original]]
        if removed:
            row[CHANGES.index(_change(before, after))] += 1
            row[-3] += 1
        else:
            row[-2] += (before.decision == before.label) != (after.decision == after.label)
            row[-1] += 1
    values, ci = _pair_figures(sums, resamples, seed)
    return BeafReport(
        parser=name,
        originals=len(places),
        images=len({one.image for one in scored}),
        removed_pairs=int(sums[:, -3].sum()),
        other_pairs=int(sums[:, -1].sum()),
        failed=sum(answer is None for answer in answers.values()),
        missing=len(questions) - len(answers),
        dropped_pairs=dropped,
        counts=binary.counts,
        values=values | {figure: getattr(binary, figure) for figure in BINARY if figure in METRICS},
        ci=ci | {figure: bounds for figure, bounds in binary.ci.items() if figure in METRICS},
        replies=binary.replies,
        resamples=resamples,
        seed=seed,
    )


def _change(before: Judged, after: Judged) -> str:
    if before.decision is None or after.decision is None:
        return "unread"
    return _CLASSES[before.decision, after.decision]


def _pair_figures(
    sums: Matrix, resamples: int, seed: int
) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
    """The figures of the pairs and their intervals, from (originals, sums)."""
    total = [int(value) for value in sums.sum(axis=0)]
    values = {name: divide(total[at], total[-3]) for at, name in enumerate(CHANGES)}
    values["id"] = divide(total[-2], total[-1])
    values["f1_tu_id"] = harmonic(values["tu"], values["id"])
    parts = {name: (sums[:, at], sums[:, -3]) for at, name in enumerate(CHANGES)}
    parts["id"] = sums[:, -2], sums[:, -1]
    bounds = joint_intervals(list(parts.values()), resamples=resamples, seed=seed)
    ci = dict(zip(parts, bounds, strict=True))
    ci["f1_tu_id"] = combined_interval([parts["tu"], parts["id"]], _harmonics, resamples=resamples, seed=seed)
    return values, ci


def harmonic(tu: float | None, indecision: float | None) -> float | None:
    """The harmonic mean of `tu` and `1 - id`; None where one of the two is.

    >>> round(harmonic(0.5964, 0.0233), 4)
    0.7406
    """
    if tu is None or indecision is None:
        return None
    firm = 1 - indecision
    return 2 * tu * firm / (tu + firm) if tu + firm else 0.0


def _harmonics(ratios: Matrix) -> Any:
    tu, firm = ratios[:, 0], 1 - ratios[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(tu + firm == 0, 0.0, 2 * tu * firm / (tu + firm))
