"""What each evaluator prints for the answers its rule has read, oddities included: for comparing with published figures.

`pope.score.YesNoReport` counts alike whatever the rule. The evaluators do not, and where one departs it is only in:

- lmms-eval: its yes ratio counts the right answers instead of the predictions, and its recall leaves out the
  answers it could not read.
- lmms-eval and VLMEvalKit: a figure with nothing to divide by is 0. The others stop with an error; here None.
- VCD's and VLMEvalKit's reports hold no count of true and false; VLMEvalKit's holds no yes ratio.
"""

from __future__ import annotations

from keepsight.eval.chair.report import divide
from keepsight.eval.pope.answer_parsers import check_parser
from keepsight.eval.pope.score import YesNoReport

Figures = dict[str, float | None]


def published(report: YesNoReport) -> Figures | None:
    """The figures of the evaluator whose rule read the answers, as fractions in [0, 1].

    None for `strict`, `mme` and `beaf`, whose evaluators do not score POPE.
    """
    parser = check_parser(report.parser).name
    if parser not in ("official", "opera", "vcd", "lmms_eval", "vlmevalkit"):
        return None
    figures: Figures = {
        "accuracy": report.accuracy,
        "precision": report.precision,
        "recall": report.recall,
        "f1": report.f1,
        "yes_ratio": report.yes_ratio,
    }
    if parser in ("official", "opera", "vcd"):
        # These scripts divide by precision + recall, and stop with a ZeroDivisionError where both are zero
        stops = not report.precision or not report.recall
        return {**figures, "f1": None} if stops else figures
    counts = report.counts
    precision = report.precision or 0.0
    if parser == "vlmevalkit":
        recall = report.recall or 0.0
        figures.pop("yes_ratio")
    else:
        recall = divide(counts.tp, counts.tp + counts.fn) or 0.0
        figures["yes_ratio"] = divide(counts.tp + counts.fn + counts.unparsed_yes, counts.n)
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {**figures, "precision": precision, "recall": recall, "f1": harmonic}
