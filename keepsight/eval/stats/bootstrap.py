"""How far a score could be off by the luck of which images were drawn: percentile bootstrap over images.

Images are resampled with replacement; what belongs to an image (its captions, answers or words) stays together. The
figures are recomputed for every resample, and a resample in which a figure has no value, such as a ratio whose
denominator is zero, is left out of that figure's interval. `resample_counts` is the only loop over resamples in the
package: everything that draws images goes through it, so that figures computed in different places with one number of
images, one number of resamples and one seed are computed on the same draws and can be paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.eval.chair.report import METRICS, Interval, PerCaption, Report
from keepsight.eval.errors import UnpairedReports
from keepsight.eval.image_ids import ImageId

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much a figure changes from one report to another, with its 95 % interval.

    The change is clear of chance when the interval does not hold zero.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resample_counts(units: int, *, resamples: int, seed: int, slice_size: int) -> Iterator[Matrix]:
    """How often each unit comes up in each resample, in slices of at most `slice_size` resamples.

    A unit is what is drawn: an image, as a rule. Each slice is a matrix (resamples of the slice, units) whose rows add
    up to `units`. The counts are a function of `units`, `resamples` and `seed`; `slice_size`, 1 or more, bounds the
    memory and changes no count.

    Raises `InvalidParameter` for no units and for a negative number of resamples.
    """
    if units < 1:
        raise InvalidParameter("there is nothing to resample: give at least one image")
    _check(resamples, 0.95)
    generator = np.random.default_rng(seed)
    # Drawing how often each unit comes up is the same as drawing units one by one, and takes one call.
    uniform = np.full(units, 1 / units)
    for start in range(0, resamples, slice_size):
        size = min(slice_size, resamples - start)
        yield generator.multinomial(units, uniform, size=size).astype(np.float64)


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> Interval | None:
    """The central interval that holds the share `level` of a figure's values in all resamples.

    NaN stands for a resample without a value and is left out; the interval is None where no value is left. Raises
    `InvalidParameter` unless `level` is between 0 and 1.
    """
    _check(0, level)
    kept = values[~np.isnan(values)]
    if not kept.size:
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_ratios(top: Matrix, bottom: Matrix, *, resamples: int = 1000, seed: int = 0) -> Matrix:
    """Many ratios of sums on the same resampled images.

    `top` and `bottom` hold numerators and denominators, (images, ratios). Returns (resamples, ratios), NaN where a
    resample has no denominator. Raises `InvalidParameter` for shapes that differ, no images, and negative `resamples`.
    """
    if top.ndim != 2 or top.shape != bottom.shape or not len(top):
        raise InvalidParameter(f"two matrices of one shape were expected, not {top.shape} and {bottom.shape}")
    images = len(top)
    ratios = [np.empty((0, top.shape[1]))]
    slice_size = max(1, 4_000_000 // images)  # at most 32 MB of counts at a time
    for counts in resample_counts(images, resamples=resamples, seed=seed, slice_size=slice_size):
        below = counts @ bottom
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.where(below > 0, (counts @ top) / below, np.nan))
    return np.concatenate(ratios)


def interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of `sum(numerators) / sum(denominators)`, one entry of each per image.

    Returns None when no resample has a denominator, or `resamples` is 0. `level` is the share of resamples
    inside, in (0, 1). Raises `InvalidParameter` for a parameter out of range.
    """
    return joint_intervals([(numerators, denominators)], resamples=resamples, seed=seed, level=level)[0]


def intervals(
    rows: Sequence[PerCaption], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """The 95 % interval of every CHAIR figure; the same resamples serve all of them."""
    _check(resamples, 0.95)
    if not resamples:
        return dict.fromkeys(METRICS)
    images = sorted({row.image_id for row in rows}, key=str)
    top, bottom = _sums(rows, images, list(METRICS))
    ratios = resampled_ratios(top, bottom, resamples=resamples, seed=seed)
    return {name: percentile_interval(ratios[:, at]) for at, name in enumerate(METRICS)}


def paired(a: Report, b: Report, metric: str, *, resamples: int = 1000, seed: int = 0) -> Difference:
    """The change of a figure from report `a` to report `b` on the same images: `b - a`, with its 95 %
    interval.

    Both are recomputed on the same resampled images, so that what makes an image hard for both cancels.
    `metric` is a figure's name ("chair_i", "recall", …). Raises `UnpairedReports` unless both are of one
    family and vocabulary and caption the same images as often, `InvalidParameter` for an unknown metric.

    The value is None where one of the two has no value.
    """
    if metric not in METRICS:
        raise InvalidParameter(f"no figure is called {metric!r}; {did_you_mean(metric, METRICS)}")
    _check(resamples, 0.95)
    if a.family != b.family:
        raise UnpairedReports(f"scores of the families {a.family!r} and {b.family!r} cannot be compared")
    if a.vocabulary_sha256 != b.vocabulary_sha256:
        raise UnpairedReports(
            f"scores of different vocabularies ({a.vocabulary}, {b.vocabulary}) cannot be compared"
        )
    if Counter(row.image_id for row in a.captions) != Counter(row.image_id for row in b.captions):
        raise UnpairedReports("the reports caption different images; score the same images with both methods")
    before, after = getattr(a, metric), getattr(b, metric)
    value = None if before is None or after is None else after - before
    if value is None or not resamples:
        return Difference(metric, value, None, None)
    images = sorted({row.image_id for row in a.captions}, key=str)
    first, second = (
        resampled_ratios(*_sums(report.captions, images, [metric]), resamples=resamples, seed=seed)
        for report in (a, b)
    )
    bounds = percentile_interval((second - first)[:, 0])
    return Difference(metric, value, *(bounds or (None, None)))


def _sums(
    rows: Sequence[PerCaption], images: Sequence[ImageId], metrics: Sequence[str]
) -> tuple[Matrix, Matrix]:
    """Numerators and denominators summed per image: two (images, metrics) matrices."""
    place = {image: at for at, image in enumerate(images)}
    at = [place[row.image_id] for row in rows]
    top, bottom = np.zeros((len(images), len(metrics))), np.zeros((len(images), len(metrics)))
    for column, (numerator, denominator) in enumerate(METRICS[name] for name in metrics):
        np.add.at(top[:, column], at, [numerator(row) for row in rows])
        np.add.at(bottom[:, column], at, [denominator(row) for row in rows])
    return top, bottom


def _check(resamples: int, level: float) -> None:
    if resamples < 0:
        raise InvalidParameter(f"resamples is 0 or more, not {resamples}")
    if not 0 < level < 1:
        raise InvalidParameter(f"level is between 0 and 1, not {level}")


def mean_interval(
    parts: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    minus: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of the mean of several ratios, each as in `interval`, over the same images.

    Each part holds a ratio's numerators and denominators, one entry per image and the images in one order, so
    that a resample draws the same images for all of them; an image that a part does not hold has zeros there.
    With `minus`, the interval is that of the mean of `parts` minus the mean of `minus`, which is paired.
    A resample in which one of the ratios has no denominator is left out. Returns and raises as `interval`.
    """
    if not parts:
        raise InvalidParameter(
            "lists of one length were expected, and none was given: a mean needs at least one ratio"
        )

    def mean_change(ratios: Matrix) -> Matrix:
        means: Matrix = ratios[:, : len(parts)].mean(axis=1)
        if minus:
            means = means - ratios[:, len(parts) :].mean(axis=1)
        return means

    return combined_interval([*parts, *minus], mean_change, resamples=resamples, seed=seed, level=level)


def combined_interval(
    parts: Sequence[tuple[ArrayLike, ArrayLike]],
    combine: Callable[[Matrix], Matrix],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Percentile interval of a figure made of several ratios over the same images, such as a harmonic mean.

    `parts` are as in `mean_interval`. `combine` is given the ratios of all resamples, (resamples, parts), and
    returns a figure for each, (resamples,); a resample for which that is NaN is left out. A ratio without a
    denominator is NaN. Returns and raises as `interval`.
    """
    ratios = _drawn(parts, resamples, seed, level)
    return None if ratios is None else percentile_interval(combine(ratios), level)


def joint_intervals(
    parts: Sequence[tuple[ArrayLike, ArrayLike]], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval | None]:
    """The `interval` of each of several ratios over the same images, which are drawn only once. Raises as it does."""
    ratios = _drawn(parts, resamples, seed, level)
    if ratios is None:
        return [None] * len(parts)
    return [percentile_interval(ratios[:, at], level) for at in range(len(parts))]


def _drawn(
    parts: Sequence[tuple[ArrayLike, ArrayLike]], resamples: int, seed: int, level: float
) -> Matrix | None:
    """Every part's ratio in every resample, (resamples, parts); None without resamples."""
    sums = [tuple(np.asarray(side, dtype=np.float64) for side in part) for part in parts]
    shapes = {side.shape for part in sums for side in part}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not sums[0][0].size:
        raise InvalidParameter(f"lists of one length were expected, not shapes {sorted(shapes)}")
    _check(resamples, level)
    if not resamples:
        return None
    top, bottom = (np.stack([part[side] for part in sums], axis=1) for side in (0, 1))
    return resampled_ratios(top, bottom, resamples=resamples, seed=seed)
