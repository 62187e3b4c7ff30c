"""Compares methods on the same questions: figures with intervals, paired differences to a baseline, a control, and
cost.

Every figure is a ratio of sums over pictures. The bootstrap draws pictures with replacement, the same pictures for
every method, and computes every figure again on each draw; an interval holds the middle 95 % of the results. A
difference whose interval holds zero is called *no significant difference*. Each interval is about one difference: of
many methods without any effect, one in twenty is still called different.

The control of CHAIR is the baseline with each caption cut to as many mentions as the method made on that picture. A
method that merely says less also invents less, and is then no better than its control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keepsight.errors import InvalidParameter
from keepsight.eval.chair import score as chair
from keepsight.eval.chair.report import Interval, Report
from keepsight.eval.stats.bootstrap import Difference, percentile_interval, resampled_ratios
from keepsight.experiments.merge_runs import (
    MergedRuns,
    MethodAnswers,
    TunedOnReported,
    check_not_tuned_on,
    merge_runs,
)
from keepsight.experiments.relative_cost import Cost, cost_of
from keepsight.experiments.scores import (
    Counts,
    Score,
    Scorer,
    Sums,
    count_answers,
    family_of,
    figures,
    score_texts,
    sums,
    texts,
    unparsed,
)
from keepsight.experiments.store import Run

RESAMPLES = 10_000
COLLAPSE = 0.05
"""A recall that is clearly below the baseline's, and by more than this fraction, is called a collapse."""
NO_DIFFERENCE = "no significant difference"
# The direction of each figure decides what is called better. Figures in neither set are better when they are higher.
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "no_object", "ig", "sb_plus", "sb_minus", "unread", "id"})
# A longer caption, more mentions or a higher share of yes are neither better nor worse as such.
NEITHER = frozenset({"length", "mentions", "yes_ratio"})


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval. The value is None where there is nothing to count, the interval also without
    resamples."""

    value: float | None
    ci: Interval | None

    def to_json(self) -> dict[str, Any]:
        """The figure as the dictionary that JSON output holds."""
        return {"value": self.value, "ci": None if self.ci is None else list(self.ci)}


@dataclass(frozen=True, kw_only=True)
class Control:
    """The baseline cut to as many mentions as a method made: its figures, and the method's figures minus them."""

    figures: Mapping[str, Figure]
    differences: Mapping[str, Difference]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method of a comparison.

    Attributes:
        source: the method, and the run whose answers are used.
        counts: how many questions of that run the method answered, failed on, or has yet to answer.
        unparsed: how many of the judged answers could not be read as yes or no; None for CHAIR.
        score: what the benchmark's own scorer says.
        figures: each figure with its interval.
        differences: the method's figures minus the baseline's; None for the baseline itself.
        control: the control of CHAIR; None for the baseline and for other benchmarks.
        cost: what the answers took.
    """

    source: MethodAnswers
    counts: Counts
    unparsed: int | None
    score: Score
    figures: Mapping[str, Figure]
    differences: Mapping[str, Difference] | None
    control: Control | None
    cost: Cost

    @property
    def method(self) -> str:
        """The method as the run records it, a canonical spec."""
        return self.source.method

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be seen beside the figures: ``recall_collapse``, ``says_less``, both or neither.

        ``recall_collapse``: recall is clearly lower than the baseline's, and by more than `COLLAPSE`. ``says_less``:
        the method invents clearly less than the baseline, but not clearly less than its control.
        """
        found = []
        if self.differences is not None:
            recall = self.differences.get("recall")
            if recall is not None and recall.clear and (recall.value or 0) < -COLLAPSE:
                found.append("recall_collapse")
        if self.differences is not None and self.control is not None:
            gained, beyond = self.differences["chair_i"], self.control.differences["chair_i"]
            if gained.clear and (gained.value or 0) < 0 and not (beyond.clear and (beyond.value or 0) < 0):
                found.append("says_less")
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        merged: the runs, and the questions that every method answered.
        rule: how answers were judged, in words.
        images: how many pictures were judged.
        rows: the methods, the baseline first.
        leaks: one sentence for each run on whose questions settings were chosen that are compared here.
        resamples, seed: those of the bootstrap.
    """

    merged: MergedRuns
    rule: str
    images: int
    rows: tuple[Row, ...]
    leaks: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def bench(self) -> str:
        """The name of the benchmark: chair, pope or beaf."""
        return str(self.merged.runs[0].manifest["bench"]["name"])

    def to_json(self, *, folders: bool = True) -> dict[str, Any]:
        """The comparison as JSON can hold it; rates are fractions in [0, 1], and costs are plain numbers.

        Args:
            folders: whether to name the folders of the runs. If not, ``folder`` is None, which suits runs that are not
                kept.
        """
        # Merged runs agree in everything that is read from this manifest.
        manifest = self.merged.runs[0].manifest
        return {
            "bench": dict(manifest["bench"]),
            "model": manifest.get("model"),
            "weights": manifest.get("weights"),
            "prompt": manifest.get("prompt"),
            "max_new_tokens": manifest.get("max_new_tokens"),
            "rule": self.rule,
            "n": len(self.merged.ids),
            "left_out": manifest["bench"]["n"] - len(self.merged.ids),
            "images": self.images,
            "baseline": self.rows[0].method,
            "bootstrap": {"resamples": self.resamples, "seed": self.seed, "level": 0.95, "unit": "picture"},
            "warnings": [*self.leaks, *self.merged.notes],
            "methods": [_row(row, folders=folders) for row in self.rows],
            "runs": [
                {
                    "folder": str(run.folder) if folders else None,
                    **{
                        name: run.manifest.get(name)
                        for name in ("methods", "baseline", "created", "seed", "batch", "versions")
                    },
                    "hardware": [one.get("hardware") for one in run.manifest.get("sessions") or ()],
                }
                for run in self.merged.runs
            ],
        }


def compare(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    scorer: Scorer | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    tunings: Sequence[Run] = (),
    allow_tuned: bool = False,
) -> Comparison:
    """Lay the methods of one or several runs side by side, on the questions that all of them answered.

    Args:
        runs: one or several runs on the same questions, in any order.
        baseline: the method that the others are compared with; None takes the runs' own.
        scorer: how answers are judged; None takes the defaults of ``Scorer``.
        resamples, seed: those of the bootstrap; 0 resamples give no intervals.
        tunings: runs on which settings were chosen that are compared here.
        allow_tuned: whether to compare all the same if settings were chosen on these questions; ``leaks`` then says so.

    Ten methods on 1,000 pictures take seconds.

    Raises:
        Incomparable, NoBaseline: as ``merge_runs``.
        TunedOnReported: settings were chosen on these questions.
        NotScorable, UnknownFamily, UnknownParser: as ``scores.score``.
    """
    scorer = scorer or Scorer()
    if resamples < 0 or seed < 0:
        raise InvalidParameter(f"resamples={resamples} and seed={seed} must be 0 or more")
    merged = merge_runs(runs, baseline)
    leaks = check_not_tuned_on(merged, tunings)
    if leaks and not allow_tuned:
        raise TunedOnReported(
            f"{leaks[0]}: figures on it flatter what was chosen; report another split, or look at these with --allow-tuned"
        )
    # Methods are only comparable on the questions that all of them answered: one that failed on the hard pictures would
    # otherwise look better for it.
    wanted = set(merged.ids)
    base = {one: text for one, text in _texts(merged.baseline).items() if one in wanted}
    run = merged.runs[0]
    judged: list[Score] = []
    controls: list[Score | None] = []
    for source in merged.sources:
        answers = {one: text for one, text in _texts(source).items() if one in wanted}
        found = score_texts(run, answers, scorer, source.method)
        judged.append(found)
        controls.append(
            # Mentions are an idea of CHAIR alone, so that yes-or-no benchmarks have no control.
            score_texts(run, _cut(run, base, found), scorer, "the control")
            if isinstance(found, Report) and source != merged.baseline
            else None
        )
    # All scores are measured in one call, so that they share their draws of pictures: what makes a picture hard for two
    # methods then cancels out of their difference. A score may be a dictionary, which cannot be a key, so the figures
    # are looked up by identity.
    every = [*judged, *(one for one in controls if one is not None)]
    measured = dict(
        zip(map(id, every), _measure([sums(run, one) for one in every], resamples, seed), strict=True)
    )
    first = measured[id(judged[0])]
    rows = []
    for source, found, control in zip(merged.sources, judged, controls, strict=True):
        mine = measured[id(found)]
        cut = None if control is None else measured[id(control)]
        rows.append(
            Row(
                source=source,
                counts=count_answers(source.run, source.method),
                unparsed=unparsed(found),
                score=found,
                figures=mine.figures,
                differences=None if source == merged.baseline else mine.minus(first),
                control=None if cut is None else Control(figures=cut.figures, differences=mine.minus(cut)),
                cost=cost_of(source.run, source.method, merged.baseline.method),
            )
        )
    some = judged[0]
    return Comparison(
        merged=merged,
        rule=f"CHAIR, family {family_of(run, scorer)}"
        if isinstance(some, Report)
        else f"parser {scorer.parser}",
        images=len(sums(run, some).images),
        rows=tuple(rows),
        leaks=leaks,
        resamples=resamples,
        seed=seed,
    )


@dataclass(frozen=True)
class _Measured:
    """The figures of a score in total, and their values on every draw of pictures, (draws,) each."""

    totals: Mapping[str, float]
    draws: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, Figure]:
        """Each figure with its interval."""
        return {
            name: Figure(None if np.isnan(value) else value, percentile_interval(self.draws[name]))
            for name, value in self.totals.items()
        }

    def minus(self, other: _Measured) -> dict[str, Difference]:
        """The difference of each figure to another score's, with its interval over the shared draws."""
        found = {}
        for name, value in self.totals.items():
            change = value - other.totals[name]
            # The figures of both scores on one draw belong to the same pictures, so their difference is paired.
            low, high = percentile_interval(self.draws[name] - other.draws[name]) or (None, None)
            found[name] = (
                Difference(name, None, None, None)
                if np.isnan(change)
                else Difference(name, change, low, high)
            )
        return found


def _measure(parts: Sequence[Sums], resamples: int, seed: int) -> list[_Measured]:
    """Measure several scores of the same pictures on the same draws of pictures."""
    # The sums of all scores stand side by side in one matrix, because resampling it once is what makes the draws the
    # same for all.
    top, bottom = np.hstack([part.top for part in parts]), np.hstack([part.bottom for part in parts])
    drawn = resampled_ratios(top, bottom, resamples=resamples, seed=seed)
    found, at = [], 0
    for part in parts:
        here = slice(at, at + len(part.columns))
        at = here.stop
        above, below = top[:, here].sum(axis=0), bottom[:, here].sum(axis=0)
        # A ratio without a denominator is a figure that cannot be given, and no fault: NaN stands for it until it is
        # shown.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(below > 0, above / below, np.nan)[None]
        totals = {name: float(one[0]) for name, one in figures(part.columns, ratios).items()}
        found.append(_Measured(totals, figures(part.columns, drawn[:, here])))
    return found


def _texts(source: MethodAnswers) -> dict[str, str]:
    """The answers of a method by the ids of their questions."""
    return texts(source.run, source.method)


def _cut(run: Run, base: Mapping[str, str], found: Report) -> dict[str, str]:
    """The baseline's captions by question, each cut to as many mentions as the method made on that picture."""
    # The scorer keeps the order of the questions, so its captions and the ids belong together pair by pair.
    asked = [item.id for item in run.items if item.id in base]
    return {
        one: chair.truncate_mentions(base[one], len(judged.generated), family=found.family)
        for one, judged in zip(asked, found.captions, strict=True)
    }


def verdict(change: Difference) -> str:
    """The words for a difference: ``lower`` or ``higher`` where its interval leaves out zero, else ``no significant
    difference``."""
    if not change.clear or change.value is None:
        return NO_DIFFERENCE
    return "lower" if change.value < 0 else "higher"


def better(change: Difference) -> bool | None:
    """Whether a difference is clearly for the better. None where it is not clear, or where the figure is neither good
    nor bad."""
    # POPE's figures of a split are called ``random.f1`` and the like; the figure alone decides the direction.
    name = change.metric.rpartition(".")[2]
    if not change.clear or change.value is None or name in NEITHER:
        return None
    return (change.value < 0) == (name in LOWER_IS_BETTER)


def _row(row: Row, *, folders: bool) -> dict[str, Any]:
    """A method of the comparison as the dictionary that JSON output holds."""
    return {
        "method": row.method,
        "folder": str(row.source.run.folder) if folders else None,
        "answered": row.counts.answered,
        "failed": row.counts.failed,
        "missing": row.counts.missing,
        "unparsed": row.unparsed,
        "figures": {name: one.to_json() for name, one in row.figures.items()},
        "differences": None if row.differences is None else _changes(row.differences),
        "control": None
        if row.control is None
        else {
            "figures": {name: one.to_json() for name, one in row.control.figures.items()},
            "differences": _changes(row.control.differences),
        },
        "cost": {
            "seconds_per_answer": row.cost.seconds,
            "tokens_per_answer": row.cost.tokens,
            "tokens_per_second": row.cost.speed,
            "relative_seconds": row.cost.relative_seconds,
            "relative_tokens_per_second": row.cost.relative_speed,
        },
        "warnings": list(row.warnings),
    }


def _changes(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """Differences as the dictionary that JSON output holds."""
    return {
        name: {
            "value": one.value,
            "ci": None if one.low is None else [one.low, one.high],
            "verdict": None if one.low is None else verdict(one),
        }
        for name, one in differences.items()
    }
