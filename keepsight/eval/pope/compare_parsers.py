"""Score the same answers by every rule for reading yes and no: how much a POPE score depends on the rule alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepsight.eval.pope.answer_parsers import PARSERS
from keepsight.eval.pope.score import Reply, mean, score


@dataclass(frozen=True, kw_only=True)
class ParserRow:
    """The figures of one rule, as means over splits.

    Attributes:
        parser: the name of the rule.
        accuracy, f1, yes_ratio: fractions in [0, 1]; None where a split has none.
        unparsed: number of answers that the rule could not read.
        differs: number of answers that the rule reads differently from `strict`.
        n: number of all answers.
    """

    parser: str
    accuracy: float | None
    f1: float | None
    yes_ratio: float | None
    unparsed: int
    differs: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as values that JSON can hold."""
        return vars(self).copy()


def compare_parsers(replies: Mapping[str, Sequence[Reply]]) -> list[ParserRow]:
    """Return a row for each rule of `answer_parsers.PARSERS`, `strict` first.

    Args:
        replies: the replies of each split, by the name of the split.

    Raises:
        EmptyFile: a split has no replies, or there is no split.
    """
    rows: list[ParserRow] = []
    reference: list[Any] = []
    for name in PARSERS:
        # Intervals are not shown in the comparison, and would take most of its time.
        reports = {split: score(group, name, resamples=0) for split, group in replies.items()}
        decisions = [reply.decision for report in reports.values() for reply in report.replies]
        # `PARSERS` begins with `strict`, whose decisions all others are compared with.
        reference = reference or decisions
        over_splits = mean(reports)
        rows.append(
            ParserRow(
                parser=name,
                accuracy=over_splits.accuracy,
                f1=over_splits.f1,
                yes_ratio=over_splits.yes_ratio,
                unparsed=over_splits.unparsed,
                differs=sum(ours != strict for ours, strict in zip(decisions, reference, strict=True)),
                n=over_splits.n,
            )
        )
    return rows
