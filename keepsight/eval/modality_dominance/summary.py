"""MDI, AEI and the picture's share over many answers: groups of layers, paired bootstrap, how much the reading matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.errors import InvalidParameter
from keepsight.eval.modality_dominance.score import (
    FIGURES,
    INPUT,
    Array,
    Masses,
    Reading,
    figures_by_layer,
    grouped,
    groups,
    number,
    over,
    reduced,
)
from keepsight.eval.stats.bootstrap import percentile_interval, resample_counts


@dataclass(frozen=True)
class Estimate:
    """A figure over answers, with its 95 % bootstrap interval and the number of answers that have the figure."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "ci": None if self.low is None else [self.low, self.high], "n": self.n}


Summary = dict[str, dict[str, Estimate]]
"""By group of layers, by figure."""


def summary(
    answers: Sequence[Masses], reading: Reading | None = None, *, resamples: int = 1000, seed: int = 0
) -> Summary:
    """The figures of each group of layers over some answers of one model.

    Of a group: the mean of its layers' figures. ``image_share`` is the share of all attention that goes to the picture.
    An answer in which a layer has no MDI has none in that layer's groups, and is left out of their mean; ``n`` says how
    many are in it.

    Args:
        resamples: of the bootstrap over answers, with ``seed``; 0: no intervals.

    Raises:
        InvalidParameter: no answers, or of models of different shape.
    """
    reading = reading or Reading()
    values, drawn, n = _resampled(answers, reading, resamples, seed)
    return _estimates(values, drawn, n, answers, reading)


def difference(
    before: Sequence[Masses],
    after: Sequence[Masses],
    reading: Reading | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Summary:
    """``after`` minus ``before``, on the same pictures in the same order, with paired intervals.

    With ``samples`` only pictures that have the figure both times count.

    Raises:
        InvalidParameter: as ``summary``, or lists of different length.
    """
    reading = reading or Reading()
    if len(before) != len(after):
        raise InvalidParameter(
            f"{len(before)} answers cannot be paired with {len(after)}: measure the same pictures"
        )
    # A figure that one side lacks must be missing on both, or the pairs come apart
    both = None
    if reading.average == "samples":
        both = grouped(reduced(before, reading), reading) + grouped(reduced(after, reading), reading)
    first, second = (_resampled(some, reading, resamples, seed, both) for some in (before, after))
    n = np.minimum(first[2], second[2])
    return _estimates(second[0] - first[0], second[1] - first[1], n, before, reading)


def layer_figures(answers: Sequence[Masses], reading: Reading | None = None) -> list[dict[str, float | None]]:
    """The figures of every layer over some answers, without intervals; ``summary`` says how answers are put together."""
    reading = reading or Reading()
    found = reduced(answers, reading)
    if reading.average == "pooled":
        found = found.added(np.ones((1, len(answers))))
    each = figures_by_layer(found)
    mean = over(np.nansum(each, 0), (~np.isnan(each)).sum(0))
    return [{name: number(value) for name, value in zip(FIGURES, row, strict=True)} for row in mean]


def share_curve(
    answers: Sequence[Masses], layers: Sequence[int] | None = None
) -> list[dict[str, float | int]]:
    """The picture's share of attention at the first, second, … generated token, mean over ``layers`` (all) and answers.

    ``n`` is the number of answers that have so many tokens; towards the end it falls, and what is left is other pictures.
    """
    curves = [(one.shares if layers is None else one.shares[:, list(layers)]).mean(-1) for one in answers]
    longest = max((len(curve) for curve in curves), default=0)
    found: list[dict[str, float | int]] = []
    for at in range(longest):
        here = [float(curve[at]) for curve in curves if len(curve) > at]
        found.append({"token": at, "image_share": math.fsum(here) / len(here), "n": len(here)})
    return found


def readings(base: Reading | None = None) -> dict[str, Reading]:
    """Ways to read the definition, each by what sets it apart from the first; see docs/dominance.md.

    Args:
        base: its ``average`` and ``group`` are kept but where they are what differs.
    """
    plain = replace(base or Reading(), text=INPUT, heads="mean")
    other = {"samples": ("answers pooled", "pooled"), "pooled": ("mean over answers", "samples")}[
        plain.average
    ]
    return {
        "all text of the prompt": plain,
        "without bos": replace(plain, text=("special", "before", "after")),
        "without bos, special": replace(plain, text=("before", "after")),
        "without before": replace(plain, text=("bos", "special", "after")),
        "after alone": replace(plain, text=("after",)),
        "with own": replace(plain, text=(*INPUT, "own")),
        "heads each": replace(plain, heads="each"),
        other[0]: replace(plain, average=other[1]),
    }


def _resampled(
    answers: Sequence[Masses], reading: Reading, resamples: int, seed: int, needed: Array | None = None
) -> tuple[Array, Array, NDArray[np.int64]]:
    """The figures ``(groups, figures)``, those of every resample ``(resamples, …)``, and how many answers have them."""
    if resamples < 0:
        raise InvalidParameter(f"resamples is 0 or more, not {resamples}")
    found = reduced(answers, reading)
    each = grouped(found, reading)
    has = ~np.isnan(each if needed is None else each + needed)
    values = np.nan_to_num(each) * has

    def figures(times: Array) -> Array:
        if reading.average == "pooled":
            return grouped(found.added(times), reading)
        shape = (len(times), *each.shape[1:])
        tops, bottoms = (
            (times @ one.reshape(len(answers), -1).astype(np.float64)).reshape(shape) for one in (values, has)
        )
        return np.asarray(over(tops, bottoms))

    once = figures(np.ones((1, len(answers))))[0]
    # Slices of 100 bound the memory: a slice of pooled answers holds attention by resample, layer and head
    counts = resample_counts(len(answers), resamples=resamples, seed=seed, slice_size=100)
    drawn = [figures(times) for times in counts]
    n = has.sum(0) if reading.average == "samples" else np.where(np.isnan(once), 0, len(answers))
    return once, np.concatenate(drawn) if drawn else np.empty((0, *once.shape)), n


def _estimates(
    values: Array, drawn: Array, n: NDArray[np.int64], answers: Sequence[Masses], reading: Reading
) -> Summary:
    def one(at: int, figure: int) -> Estimate:
        value = number(values[at, figure])
        # Of one answer every resample is the same, so that there is nothing to say about its spread
        bounds = None if value is None or len(answers) < 2 else percentile_interval(drawn[:, at, figure])
        low, high = bounds or (None, None)
        return Estimate(value, low, high, int(n[at, figure]))

    names = groups(answers[0].layers, reading.group)
    return {
        name: {figure: one(at, column) for column, figure in enumerate(FIGURES)}
        for at, name in enumerate(names)
    }
