"""Percentile bootstrap over images: how far a score may be off because of which images happened to be scored.

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

    Attributes:
        metric: the name of the figure.
        value: the change, second report minus first; None where one of them has no value.
        low, high: the bounds of the interval; None without a value or without resamples.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero, so that chance alone hardly explains the change."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def resample_counts(units: int, *, resamples: int, seed: int, slice_size: int) -> Iterator[Matrix]:
    """Yield how often each unit is drawn in each resample, in slices of at most `slice_size` resamples.

    Args:
        units: number of units to draw from, and to draw in each resample; a unit is an image, as a rule.
        resamples: number of resamples, 0 or more.
        seed: seed of the draws. The counts depend on `units`, `resamples` and `seed` alone.
        slice_size: the most resamples of a slice, 1 or more; it bounds the memory and changes no count.

    Yields:
        Matrices (resamples of the slice, units) of float64, whose rows add up to `units`.

    Raises:
        InvalidParameter: there are no units, or `resamples` is negative.
    """
    if units < 1:
        raise InvalidParameter("there is nothing to resample: give at least one image")
    _check(resamples, 0.95)  # there is no level here, and 0.95 is always in range
    # A new generator for each call makes equal seeds give equal draws, so that figures of separate calls can be paired.
    generator = np.random.default_rng(seed)
    # Drawing how often each unit comes up is the same as drawing units one by one, and takes one call.
    uniform = np.full(units, 1 / units)
    for start in range(0, resamples, slice_size):
        size = min(slice_size, resamples - start)
        # The counts are floats because they are multiplied with matrices of floats, for which NumPy calls BLAS.
        yield generator.multinomial(units, uniform, size=size).astype(np.float64)


def percentile_interval(values: NDArray[np.float64], level: float = 0.95) -> Interval | None:
    """Return the central interval that holds the share `level` of a figure's values in all resamples.

    NaN stands for a resample without a value and is left out; the interval is None where no value is left.

    Raises:
        InvalidParameter: `level` is not between 0 and 1.
    """
    _check(0, level)
    kept = values[~np.isnan(values)]
    if not kept.size:
        return None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_ratios(top: Matrix, bottom: Matrix, *, resamples: int = 1000, seed: int = 0) -> Matrix:
    """Return several ratios of sums, each computed on the same resampled images.

    Args:
        top, bottom: numerators and denominators, each a matrix (images, ratios).
        resamples: number of resamples, 0 or more.
        seed: seed of the draws.

    Returns:
        A matrix (resamples, ratios), with NaN where the denominators of a resample add up to zero.

    Raises:
        InvalidParameter: the shapes differ, there are no images, or `resamples` is negative.
    """
    if top.ndim != 2 or top.shape != bottom.shape or not len(top):
        raise InvalidParameter(f"two matrices of one shape were expected, not {top.shape} and {bottom.shape}")
    images = len(top)
    ratios = [np.empty((0, top.shape[1]))]  # NumPy joins no empty list, which is what 0 resamples would leave
    slice_size = max(1, 4_000_000 // images)  # at most 32 MB of counts at a time
    for counts in resample_counts(images, resamples=resamples, seed=seed, slice_size=slice_size):
        # An image drawn twice counts twice in both sums, so that the counts are the weights of the images.
        below = counts @ bottom
        # `np.where` divides everywhere, also where the result is not used, and would warn about division by zero.
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
    """Return the percentile interval of `sum(numerators) / sum(denominators)`.

    Args:
        numerators, denominators: one number of each for every image.
        resamples: number of resamples, 0 or more.
        seed: seed of the draws.
        level: share of the resamples inside the interval, in (0, 1).

    Returns:
        The lower and the upper bound; None if no resample has a denominator or `resamples` is 0.

    Raises:
        InvalidParameter: the two lists differ in length or are empty, or a parameter is out of its range.
    """
    return joint_intervals([(numerators, denominators)], resamples=resamples, seed=seed, level=level)[0]


def intervals(
    rows: Sequence[PerCaption], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % interval of every CHAIR figure, all computed on the same resamples; each is None for 0 resamples."""
    _check(resamples, 0.95)
    if not resamples:
        return dict.fromkeys(METRICS)
    # The images are sorted so that the order of the captions does not change which image a draw hits. Ids may be numbers
    # and names, which Python cannot compare, and are therefore sorted as text.
    images = sorted({row.image_id for row in rows}, key=str)
    top, bottom = _sums(rows, images, list(METRICS))
    ratios = resampled_ratios(top, bottom, resamples=resamples, seed=seed)
    return {name: percentile_interval(ratios[:, at]) for at, name in enumerate(METRICS)}


def paired(a: Report, b: Report, metric: str, *, resamples: int = 1000, seed: int = 0) -> Difference:
    """Return the change of a CHAIR figure from report `a` to report `b` on the same images, with its 95 % interval.

    Both figures are recomputed on the same resampled images, so that what makes an image hard for both cancels.

    Args:
        a, b: reports of one family and one vocabulary that caption the same images equally often.
        metric: the name of a figure, such as "chair_i" or "recall".
        resamples: number of resamples; 0 gives no interval.
        seed: seed of the draws.

    Returns:
        The change `b - a`; its value is None where one of the two has no value.

    Raises:
        UnpairedReports: the reports differ in family, vocabulary or images.
        InvalidParameter: there is no figure of this name, or `resamples` is negative.
    """
    if metric not in METRICS:
        raise InvalidParameter(f"no figure is called {metric!r}; {did_you_mean(metric, METRICS)}")
    _check(resamples, 0.95)
    if a.family != b.family:
        raise UnpairedReports(f"scores of the families {a.family!r} and {b.family!r} cannot be compared")
    # Files of one name may hold different words, so that the digest is compared instead of the name.
    if a.vocabulary_sha256 != b.vocabulary_sha256:
        raise UnpairedReports(
            f"scores of different vocabularies ({a.vocabulary}, {b.vocabulary}) cannot be compared"
        )
    # The numbers of captions are compared, too: an image with two captions in one report weighs more there.
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
    """Return the numerators and the denominators summed over each image: two matrices (images, metrics)."""
    place = {image: at for at, image in enumerate(images)}
    at = [place[row.image_id] for row in rows]
    top, bottom = np.zeros((len(images), len(metrics))), np.zeros((len(images), len(metrics)))
    for column, (numerator, denominator) in enumerate(METRICS[name] for name in metrics):
        # An image may have several captions. With a repeated index `top[at] += …` would add only the last of them.
        np.add.at(top[:, column], at, [numerator(row) for row in rows])
        np.add.at(bottom[:, column], at, [denominator(row) for row in rows])
    return top, bottom


def _check(resamples: int, level: float) -> None:
    """Raise `InvalidParameter` if one of the two is out of its range."""
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
    """Return the percentile interval of the mean of several ratios, each as in `interval`, over the same images.

    A resample in which one of the ratios has no denominator is left out.

    Args:
        parts: the numerators and denominators of each ratio, one number of each for every image. The images stand in
            one order in all parts, so that a resample draws the same ones; an image that a part lacks has zeros there.
        minus: further ratios. The interval is then that of the mean of `parts` minus the mean of `minus`, on the same
            draws and therefore paired.
        resamples, seed, level: as in `interval`.

    Returns:
        The lower and the upper bound, or None as in `interval`.

    Raises:
        InvalidParameter: as `interval`, and if there are no parts.
    """
    if not parts:
        raise InvalidParameter(
            "lists of one length were expected, and none was given: a mean needs at least one ratio"
        )

    def mean_change(ratios: Matrix) -> Matrix:
        """Return the mean of the first ratios, minus the mean of the others if there are any, for each resample."""
        # A ratio that is NaN makes the mean NaN, so that the resample is left out.
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
    """Return the percentile interval of a figure made of several ratios over the same images, such as a harmonic mean.

    Args:
        parts: as in `mean_interval`.
        combine: takes the ratios of all resamples, (resamples, parts), in which a ratio without a denominator is NaN, and
            returns one figure for each resample, (resamples,). A resample whose figure is NaN is left out.
        resamples, seed, level: as in `interval`.

    Returns:
        The lower and the upper bound, or None as in `interval`.

    Raises:
        InvalidParameter: as `interval`.
    """
    ratios = _drawn(parts, resamples, seed, level)
    return None if ratios is None else percentile_interval(combine(ratios), level)


def joint_intervals(
    parts: Sequence[tuple[ArrayLike, ArrayLike]], *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Interval | None]:
    """Return the `interval` of each of several ratios over the same images, which are drawn only once.

    Arguments are those of `mean_interval`; errors are those of `interval`.
    """
    ratios = _drawn(parts, resamples, seed, level)
    if ratios is None:
        return [None] * len(parts)
    return [percentile_interval(ratios[:, at], level) for at in range(len(parts))]


def _drawn(
    parts: Sequence[tuple[ArrayLike, ArrayLike]], resamples: int, seed: int, level: float
) -> Matrix | None:
    """Return the ratio of every part in every resample, (resamples, parts); None for 0 resamples."""
    sums = [tuple(np.asarray(side, dtype=np.float64) for side in part) for part in parts]
    shapes = {side.shape for part in sums for side in part}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not sums[0][0].size:
        raise InvalidParameter(f"lists of one length were expected, not shapes {sorted(shapes)}")
    _check(resamples, level)
    if not resamples:
        return None
    top, bottom = (np.stack([part[side] for part in sums], axis=1) for side in (0, 1))
    return resampled_ratios(top, bottom, resamples=resamples, seed=seed)
