"""How far a score could be off by the luck of which images were drawn: percentile bootstrap over images.

Images are resampled with replacement; an image's captions stay together. All figures are ratios of sums,
which are recomputed for every resample; a resample whose denominator is zero is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
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
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.ndim != 1 or top.shape != bottom.shape or not top.size:
        raise InvalidParameter(
            f"two lists of one length were expected, not shapes {top.shape} and {bottom.shape}"
        )
    _check(resamples, level)
    if not resamples:
        return None
    return _bounds(_ratios(top[:, None], bottom[:, None], resamples, seed)[:, 0], level)


def intervals(
    rows: Sequence[PerCaption], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """The 95 % interval of every CHAIR figure; the same resamples serve all of them."""
    _check(resamples, 0.95)
    if not resamples:
        return dict.fromkeys(METRICS)
    images = sorted({row.image_id for row in rows}, key=str)
    top, bottom = _sums(rows, images, list(METRICS))
    ratios = _ratios(top, bottom, resamples, seed)
    return {name: _bounds(ratios[:, at], 0.95) for at, name in enumerate(METRICS)}


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
    first, second = (_ratios(*_sums(report.captions, images, [metric]), resamples, seed) for report in (a, b))
    bounds = _bounds((second - first)[:, 0], 0.95)
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


def _ratios(top: Matrix, bottom: Matrix, resamples: int, seed: int) -> Matrix:
    """The ratios of every resample: (resamples, metrics), NaN where a denominator is zero."""
    images = len(top)
    draw = np.random.default_rng(seed)
    uniform = np.full(images, 1 / images)
    ratios = np.empty((resamples, top.shape[1]))
    # Drawing how often each image comes up is the same as drawing images; in slices, to bound the memory.
    step = max(1, 4_000_000 // images)
    for start in range(0, resamples, step):
        times = draw.multinomial(images, uniform, size=min(step, resamples - start)).astype(np.float64)
        below = times @ bottom
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios[start : start + step] = np.where(below > 0, (times @ top) / below, np.nan)
    return ratios


def _bounds(values: NDArray[np.float64], level: float) -> Interval | None:
    kept = values[~np.isnan(values)]
    if not kept.size:
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
    sums = [tuple(np.asarray(side, dtype=np.float64) for side in part) for part in (*parts, *minus)]
    shapes = {side.shape for part in sums for side in part}
    if not parts or len(shapes) != 1 or len(next(iter(shapes))) != 1 or not sums[0][0].size:
        raise InvalidParameter(f"lists of one length were expected, not shapes {sorted(shapes)}")
    _check(resamples, level)
    if not resamples:
        return None
    top, bottom = (np.stack([part[side] for part in sums], axis=1) for side in (0, 1))
    ratios = _ratios(top, bottom, resamples, seed)
    means = ratios[:, : len(parts)].mean(axis=1)
    if minus:
        means = means - ratios[:, len(parts) :].mean(axis=1)
    return _bounds(means, level)


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
    return None if ratios is None else _bounds(combine(ratios), level)


def joint_intervals(
    parts: Sequence[tuple[ArrayLike, ArrayLike]], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval | None]:
    """The `interval` of each of several ratios over the same images, which are drawn only once. Raises as it does."""
    ratios = _drawn(parts, resamples, seed, level)
    if ratios is None:
        return [None] * len(parts)
    return [_bounds(ratios[:, at], level) for at in range(len(parts))]


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
    return _ratios(top, bottom, resamples, seed)


def resampled(top: Matrix, bottom: Matrix, *, resamples: int = 1000, seed: int = 0) -> Matrix:
    """Many ratios on the same resampled images: (images, ratios) numerators and denominators -> (resamples, ratios).

    NaN where a resample has no denominator. The images drawn hang on their number, `resamples` and `seed` alone, and
    are those of `interval` and `paired`. Raises `InvalidParameter` for shapes that differ and for no images.
    """
    if top.ndim != 2 or top.shape != bottom.shape or not len(top):
        raise InvalidParameter(f"two matrices of one shape were expected, not {top.shape} and {bottom.shape}")
    _check(resamples, 0.95)
    return _ratios(top, bottom, resamples, seed)


def bounds(values: NDArray[np.float64], level: float = 0.95) -> Interval | None:
    """The percentile interval of a figure's values in all resamples, NaN left out; None where none is left."""
    _check(0, level)
    return _bounds(values, level)
