"""The figures that each evaluator prints for answers read by its own rule, for comparison with published figures.

`pope.score.YesNoReport` counts in the same way for every rule. The evaluators do not; they depart from it as follows:

- lmms-eval's yes ratio is that of the right answers instead of the model's, and its recall leaves out the answers that
  it could not read.
- lmms-eval and VLMEvalKit print 0 for a figure with nothing to divide by. The other scripts stop with an error, for which
  the figure is None here.
- The reports of VCD and VLMEvalKit hold no counts of true and false answers, and VLMEvalKit's holds no yes ratio.
"""

from __future__ import annotations

from keepsight.eval.chair.report import divide
from keepsight.eval.pope.answer_parsers import check_parser
from keepsight.eval.pope.score import YesNoReport

Figures = dict[str, float | None]


def published(report: YesNoReport) -> Figures | None:
    """Return the figures that the evaluator whose rule read the answers would print, as fractions in [0, 1].

    The result is None for `strict`, `mme` and `beaf`, which belong to no evaluator of POPE.

    Raises:
        UnknownParser: the report names a rule that does not exist.
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
        # These scripts divide by precision + recall, and stop with a ZeroDivisionError where both are zero. One is zero only
        # if there is no true positive, so that the other is zero or undefined then.
        stops = not report.precision or not report.recall
        return {**figures, "f1": None} if stops else figures
    counts = report.counts
    precision = report.precision or 0.0
    if parser == "vlmevalkit":
        recall = report.recall or 0.0
        figures.pop("yes_ratio")
    else:  # lmms_eval
        recall = divide(counts.tp, counts.tp + counts.fn) or 0.0
        figures["yes_ratio"] = divide(counts.tp + counts.fn + counts.unparsed_yes, counts.n)
    # Both scripts make F1 of precision and recall, which are 0 here where the report has none.
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {**figures, "precision": precision, "recall": recall, "f1": harmonic}
