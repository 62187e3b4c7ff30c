"""MDI, AEI and the picture's share over many answers: groups of layers, paired bootstrap, and the effect of the reading."""

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
    """A figure over several answers.

    Attributes:
        value: the figure; None if no answer has it.
        low, high: its 95 % bootstrap interval; None without a value, without resamples and for a single answer.
        n: number of answers that have the figure.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as values that JSON can hold."""
        return {"value": self.value, "ci": None if self.low is None else [self.low, self.high], "n": self.n}


Summary = dict[str, dict[str, Estimate]]
"""Estimates by the name of the group of layers and the name of the figure."""


def summary(
    answers: Sequence[Masses], reading: Reading | None = None, *, resamples: int = 1000, seed: int = 0
) -> Summary:
    """Return the figures of each group of layers over some answers of one model.

    The figure of a group is the mean of the figures of its layers. ``image_share`` is the share of all attention that goes
    to the picture. An answer in which a layer has no MDI has none in the groups of that layer either, and is left out of
    their means; ``n`` says how many answers are in a mean.

    Args:
        answers: the attention of each answer.
        reading: the choices that the definition leaves open; the default ``Reading`` if None.
        resamples: number of bootstrap resamples of the answers; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        InvalidParameter: there are no answers, or they are of models with different numbers of layers or heads.
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
    """Return ``after`` minus ``before``, on the same pictures in the same order, with paired intervals.

    If the reading averages ``samples``, only pictures whose two answers both have the figure count. The other arguments are
    those of ``summary``.

    Raises:
        InvalidParameter: as ``summary``, or the lists differ in length.
    """
    reading = reading or Reading()
    if len(before) != len(after):
        raise InvalidParameter(
            f"{len(before)} answers cannot be paired with {len(after)}: measure the same pictures"
        )
    # A figure that one side lacks must be missing on both, or the two means would be over different pictures. NaN plus a
    # number is NaN, so that the sum is NaN wherever one of the sides is. Pooled answers have one figure together.
    both = None
    if reading.average == "samples":
        both = grouped(reduced(before, reading), reading) + grouped(reduced(after, reading), reading)
    # One seed draws the same pictures for both sides, so that the resamples can be subtracted one by one.
    first, second = (_resampled(some, reading, resamples, seed, both) for some in (before, after))
    n = np.minimum(first[2], second[2])
    return _estimates(second[0] - first[0], second[1] - first[1], n, before, reading)


def layer_figures(answers: Sequence[Masses], reading: Reading | None = None) -> list[dict[str, float | None]]:
    """Return the figures of every layer over some answers, without intervals; ``summary`` says how answers are combined."""
    reading = reading or Reading()
    found = reduced(answers, reading)
    if reading.average == "pooled":
        found = found.added(np.ones((1, len(answers))))
    each = figures_by_layer(found)
    # `np.nanmean` would warn where no answer has a figure.
    mean = over(np.nansum(each, 0), (~np.isnan(each)).sum(0))
    return [{name: number(value) for name, value in zip(FIGURES, row, strict=True)} for row in mean]


def share_curve(
    answers: Sequence[Masses], layers: Sequence[int] | None = None
) -> list[dict[str, float | int]]:
    """Return the picture's share of attention at each generated token, averaged over layers and answers.

    Args:
        answers: the attention of each answer.
        layers: the layers to average over, numbered from 0; all if None.

    Returns:
        For each token ``token``, its number from 0, ``image_share``, in [0, 1], and ``n``, the number of answers that
        have so many tokens. ``n`` falls towards the end, where the mean is over other pictures than at the beginning.
    """
    curves = [(one.shares if layers is None else one.shares[:, list(layers)]).mean(-1) for one in answers]
    longest = max((len(curve) for curve in curves), default=0)
    found: list[dict[str, float | int]] = []
    for at in range(longest):
        here = [float(curve[at]) for curve in curves if len(curve) > at]
        found.append({"token": at, "image_share": math.fsum(here) / len(here), "n": len(here)})
    return found


def readings(base: Reading | None = None) -> dict[str, Reading]:
    """Return several readings of the definition, each named by how it differs from the first; see docs/dominance.md.

    Args:
        base: the reading whose ``average`` and ``group`` all others have, except the one that changes ``average``.
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
    """Return the figures ``(groups, figures)``, those of each resample ``(resamples, …)``, and how many answers have them.

    Where ``needed`` ``(answers, groups, figures)`` is NaN, the figure of that answer is left out.
    """
    if resamples < 0:
        raise InvalidParameter(f"resamples is 0 or more, not {resamples}")
    found = reduced(answers, reading)
    each = grouped(found, reading)
    has = ~np.isnan(each if needed is None else each + needed)
    values = np.nan_to_num(each) * has  # 0 where there is no figure, so that sums leave it out

    def figures(times: Array) -> Array:
        """Return the figures when each answer counts as often as ``times`` ``(resamples, answers)`` says."""
        if reading.average == "pooled":
            return grouped(found.added(times), reading)
        shape = (len(times), *each.shape[1:])
        tops, bottoms = (
            (times @ one.reshape(len(answers), -1).astype(np.float64)).reshape(shape) for one in (values, has)
        )
        return np.asarray(over(tops, bottoms))

    once = figures(np.ones((1, len(answers))))[0]
    # Slices of 100 bound the memory: a slice of pooled answers holds attention by resample, layer and head.
    counts = resample_counts(len(answers), resamples=resamples, seed=seed, slice_size=100)
    drawn = [figures(times) for times in counts]
    n = has.sum(0) if reading.average == "samples" else np.where(np.isnan(once), 0, len(answers))
    return once, np.concatenate(drawn) if drawn else np.empty((0, *once.shape)), n


def _estimates(
    values: Array, drawn: Array, n: NDArray[np.int64], answers: Sequence[Masses], reading: Reading
) -> Summary:
    """Return the figures of every group with their intervals."""

    def one(at: int, figure: int) -> Estimate:
        """Return one figure of one group."""
        value = number(values[at, figure])
        # Every resample of a single answer is that answer, so that the interval would have no width.
        bounds = None if value is None or len(answers) < 2 else percentile_interval(drawn[:, at, figure])
        low, high = bounds or (None, None)
        return Estimate(value, low, high, int(n[at, figure]))

    names = groups(answers[0].layers, reading.group)
    return {
        name: {figure: one(at, column) for column, figure in enumerate(FIGURES)}
        for at, name in enumerate(names)
    }
