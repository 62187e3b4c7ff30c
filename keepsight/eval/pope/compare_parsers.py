"""The same answers read by every rule: how far a POPE score moves with the rule alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepsight.eval.pope.answer_parsers import PARSERS
from keepsight.eval.pope.score import Reply, mean, score


@dataclass(frozen=True, kw_only=True)
class ParserRow:
    """One rule's figures, means over splits; `differs` counts the answers it reads otherwise than `strict`."""

    parser: str
    accuracy: float | None
    f1: float | None
    yes_ratio: float | None
    unparsed: int
    differs: int
    n: int

    def to_json(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return vars(self).copy()


def compare_parsers(replies: Mapping[str, Sequence[Reply]]) -> list[ParserRow]:
    """A row for each rule of `answer_parsers.PARSERS`, `strict` first; `replies` maps splits to their replies.

    Raises `EmptyFile` for a split without replies.
    """
    rows: list[ParserRow] = []
    reference: list[Any] = []
    for name in PARSERS:
        reports = {split: score(group, name, resamples=0) for split, group in replies.items()}
        decisions = [reply.decision for report in reports.values() for reply in report.replies]
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
