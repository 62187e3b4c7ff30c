"""BEAF: the figures and counts of a model's answers, by both rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from keepsight.eval.beaf.files import match, read_questions
from keepsight.eval.beaf.score import PARSERS, BeafReport, score
from keepsight.eval.pope.files import read_answers
from parity._row import Row, tally

RATES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
    "TU": "tu",
    "IG": "ig",
    "SBp": "sb_plus",
    "SBn": "sb_minus",
    "ID": "id",
    "F1_TUID": "f1_tu_id",
}


def differences(shared: Path) -> Iterator[Row]:
    """The one file, whose answers both rules read alike."""
    folder = shared / "data" / "parity" / "beaf"
    official = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    file = folder / "qna_with_gpt4o_answers.jsonl"
    questions = read_questions(file)
    answers = match(questions, read_answers(file))
    for parser in PARSERS:
        report = score(questions, answers, parser, resamples=0)
        ours = figures(report)
        yield tally(
            f"beaf/{file.name}",
            f"{parser}: figures and counts",
            ((name, ours.get(name), value) for name, value in official.items()),
        )


def figures(report: BeafReport) -> dict[str, object]:
    """A report under the names of the reference file, rates in per cent."""
    counts = report.counts
    return {
        **{name: percent(report.values[ours]) for name, ours in RATES.items()},
        "n_questions": report.n,
        "n_removed_pairs": report.removed_pairs,
        "confusion": {"FN": counts.fn, "TP": counts.tp, "TN": counts.tn, "FP": counts.fp},
    }


def percent(rate: float | None) -> float | None:
    return None if rate is None else 100 * rate
