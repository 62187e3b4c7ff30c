"""Methods side by side on the same questions: figures with intervals, paired differences to a baseline, a control, cost.

All figures are ratios of sums over pictures. Pictures are drawn with replacement, the same for every method, and every
figure is recomputed on each draw; an interval holds 95 % of what came out. A difference whose interval holds zero is
*no significant difference*. Each interval is about one difference: of many methods without any effect, one in twenty
is still called different.

The control of CHAIR is the baseline, each caption cut to as many mentions as the method made on that picture: who
merely says less makes up less, too, and is no better than that.
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
"""A recall clearly below the baseline's, and by more than this, is called a collapse."""
NO_DIFFERENCE = "no significant difference"
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "no_object", "ig", "sb_plus", "sb_minus", "unread", "id"})
NEITHER = frozenset({"length", "mentions", "yes_ratio"})


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval; None where there is nothing to count."""

    value: float | None
    ci: Interval | None

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "ci": None if self.ci is None else list(self.ci)}


@dataclass(frozen=True, kw_only=True)
class Control:
    """The baseline cut to as many mentions: its figures, and the method minus it."""

    figures: Mapping[str, Figure]
    differences: Mapping[str, Difference]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method. ``differences`` are method minus baseline; they and the control are None for the baseline."""

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
        return self.source.method

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be seen beside the figures: ``recall_collapse``, ``says_less``.

        The second: fewer are made up than by the baseline, but not clearly fewer than by the control.
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
    """What ``compare`` found; ``rows`` begin with the baseline. ``leaks`` say what was tuned on these questions."""

    merged: MergedRuns
    rule: str
    images: int
    rows: tuple[Row, ...]
    leaks: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def bench(self) -> str:
        return str(self.merged.runs[0].manifest["bench"]["name"])

    def to_json(self, *, folders: bool = True) -> dict[str, Any]:
        """The comparison as JSON can hold it; rates are fractions in [0, 1], costs plain numbers.

        Args:
            folders: whether to say where the runs lie. Without it ``folder`` is None, for runs that are not kept.
        """
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
        baseline: what the others are compared with; None is the runs' own.
        scorer: how answers are judged.
        resamples, seed: of the bootstrap; 0 resamples for no intervals.
        tunings: runs on which settings were chosen that are compared here.
        allow_tuned: go on although settings were chosen on these questions, and say so.

    Cost: ten methods on 1,000 pictures take seconds.

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
            score_texts(run, _cut(run, base, found), scorer, "the control")
            if isinstance(found, Report) and source != merged.baseline
            else None
        )
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
    """A score's figures, and what they are on every draw."""

    totals: Mapping[str, float]
    draws: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, Figure]:
        return {
            name: Figure(None if np.isnan(value) else value, percentile_interval(self.draws[name]))
            for name, value in self.totals.items()
        }

    def minus(self, other: _Measured) -> dict[str, Difference]:
        found = {}
        for name, value in self.totals.items():
            change = value - other.totals[name]
            low, high = percentile_interval(self.draws[name] - other.draws[name]) or (None, None)
            found[name] = (
                Difference(name, None, None, None)
                if np.isnan(change)
                else Difference(name, change, low, high)
            )
        return found


def _measure(parts: Sequence[Sums], resamples: int, seed: int) -> list[_Measured]:
    """The figures of several scores of the same pictures, on the same draws of pictures."""
    top, bottom = np.hstack([part.top for part in parts]), np.hstack([part.bottom for part in parts])
    drawn = resampled_ratios(top, bottom, resamples=resamples, seed=seed)
    found, at = [], 0
    for part in parts:
        here = slice(at, at + len(part.columns))
        at = here.stop
        above, below = top[:, here].sum(axis=0), bottom[:, here].sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(below > 0, above / below, np.nan)[None]
        totals = {name: float(one[0]) for name, one in figures(part.columns, ratios).items()}
        found.append(_Measured(totals, figures(part.columns, drawn[:, here])))
    return found


def _texts(source: MethodAnswers) -> dict[str, str]:
    return texts(source.run, source.method)


def _cut(run: Run, base: Mapping[str, str], found: Report) -> dict[str, str]:
    """The baseline's captions, each cut to as many mentions as the method made on that picture."""
    asked = [item.id for item in run.items if item.id in base]
    return {
        one: chair.truncate_mentions(base[one], len(judged.generated), family=found.family)
        for one, judged in zip(asked, found.captions, strict=True)
    }


def verdict(change: Difference) -> str:
    """``no significant difference``, else ``lower`` or ``higher``."""
    if not change.clear or change.value is None:
        return NO_DIFFERENCE
    return "lower" if change.value < 0 else "higher"


def better(change: Difference) -> bool | None:
    """Whether a difference is clearly for the better; None where it is not clear, or neither."""
    name = change.metric.rpartition(".")[2]
    if not change.clear or change.value is None or name in NEITHER:
        return None
    return (change.value < 0) == (name in LOWER_IS_BETTER)


def _row(row: Row, *, folders: bool) -> dict[str, Any]:
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
    return {
        name: {
            "value": one.value,
            "ci": None if one.low is None else [one.low, one.high],
            "verdict": None if one.low is None else verdict(one),
        }
        for name, one in differences.items()
    }
