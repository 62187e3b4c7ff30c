"""How well a score separates invented words from supported ones: the area under the ROC curve, and figures at a threshold.

The area is the probability that a case drawn from the positives scores higher than one drawn from the negatives, where a
tie counts one half: 1 separates them perfectly, 0.5 is chance, and 0 separates them perfectly the wrong way round. The
area is the rank statistic of Mann and Whitney, so that only the order of the scores matters.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keepsight.errors import InvalidParameter
from keepsight.eval.chair.report import Interval, divide
from keepsight.eval.errors import EmptyFile
from keepsight.eval.stats.bootstrap import Difference, percentile_interval, resample_counts

Vector = NDArray[np.float64]


class Detection(NamedTuple):
    """How the cases that a threshold flags compare with the truth. Rates are fractions in [0, 1], or None for no cases.

    Attributes:
        flagged: share of the cases that are flagged.
        precision: share of the flagged cases that are positive.
        recall: share of the positive cases that are flagged.
        f1: harmonic mean of precision and recall.
    """

    flagged: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Return the area under the ROC curve, in [0, 1]; None where all cases are of one class.

    Args:
        scores: one number for each case, higher for "more likely positive"; infinities count as lowest and highest.
        labels: whether each case is positive.

    Raises:
        InvalidParameter: the lists differ in length, a score is NaN, or a label is neither true nor false.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    values, positive = _check(scores, labels)
    if not values.size:
        return None
    area = _areas(values, positive, np.ones((1, values.size)))[0]
    return None if np.isnan(area) else float(area)


def auroc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    images: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval | None:
    """Return the percentile bootstrap interval of ``auroc`` over images.

    Images are drawn with replacement, and the cases of an image stay together, because they are not independent.

    Args:
        scores, labels: as in ``auroc``.
        images: the image of each case. Images without a case are not drawn and need not be known.
        resamples: number of resamples; 0 gives None.
        seed: seed of the draws.
        level: share of the resamples inside the interval, in (0, 1).

    Returns:
        The lower and the upper bound. A resample in which all cases are of one class has no area and is left out; the
        result is None if no resample has an area.

    Raises:
        InvalidParameter: as ``auroc``, and for a parameter out of its range.
    """
    values, positive = _check(scores, labels)
    return percentile_interval(_resampled(values, positive, images, resamples, seed, level), level)


def paired_auroc(
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    images: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return how much larger the area of ``after`` is than that of ``before``, with the 95 % interval of the difference.

    Both are scores of the same cases, and both areas are recomputed on the same resampled images. The other arguments and
    the errors are those of ``auroc_interval``.
    """
    first, second = auroc(before, labels), auroc(after, labels)
    if first is None or second is None:
        return Difference("auroc", None, None, None)
    # One seed gives both sides the same draws, so that areas[1] - areas[0] is paired resample by resample.
    areas = [_resampled(*_check(scores, labels), images, resamples, seed, 0.95) for scores in (before, after)]
    return Difference("auroc", second - first, *(percentile_interval(areas[1] - areas[0]) or (None, None)))


def _resampled(
    values: Vector,
    positive: NDArray[np.bool_],
    images: Sequence[Hashable],
    resamples: int,
    seed: int,
    level: float,
) -> Vector:
    """Return the area of every resample, (resamples,), with NaN where all cases are of one class."""
    if len(images) != values.size:
        raise InvalidParameter(f"{values.size} scores need as many images, not {len(images)}")
    if resamples < 0 or not 0 < level < 1:
        raise InvalidParameter(f"resamples={resamples} must be 0 or more, level={level} between 0 and 1")
    if not values.size:  # there is no image to draw, which `resample_counts` refuses
        return np.empty(0)
    # Images are drawn, but areas are made of cases: each case is weighted with how often its image was drawn.
    place: dict[Hashable, int] = {}
    owner = np.array([place.setdefault(image, len(place)) for image in images])
    slice_size = max(1, 4_000_000 // values.size)  # at most 32 MB of weights at a time
    counts = resample_counts(len(place), resamples=resamples, seed=seed, slice_size=slice_size)
    # NumPy joins no empty list, which is what 0 resamples would leave without the empty array.
    return np.concatenate([np.empty(0), *(_areas(values, positive, times[:, owner]) for times in counts)])


def detect(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Detection:
    """Return the figures that flagging every case with a score above ``threshold`` gives.

    Raises:
        InvalidParameter: as ``auroc``.

    >>> detect([0.1, 0.4, 0.35, 0.8], [False, False, True, True], 0.3)
    Detection(flagged=0.75, precision=0.6666666666666666, recall=1.0, f1=0.8)
    """
    values, positive = _check(scores, labels)
    flagged = values > threshold
    hits, marked, real = (int(one.sum()) for one in (flagged & positive, flagged, positive))
    return Detection(
        divide(marked, values.size), divide(hits, marked), divide(hits, real), divide(2 * hits, marked + real)
    )


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the threshold for ``detect`` with the largest F1; among thresholds with equal F1, the highest.

    The threshold lies halfway between two neighbouring scores and flags at least one case. It has to be chosen on other
    data than those on which its figures are reported.

    Raises:
        EmptyFile: no case is positive, so that every F1 would be zero or undefined.
        InvalidParameter: as ``auroc``, and for an infinite score.
    """
    values, positive = _check(scores, labels)
    if np.isinf(values).any():
        raise InvalidParameter("a score is infinite: there is no threshold beyond it")
    if not positive.any():
        raise EmptyFile("a threshold is chosen on positive and negative cases, and none is positive")
    # The sums run from the end: entry k counts the cases at level k and above, which a threshold below level k flags.
    levels, group = np.unique(values, return_inverse=True)
    hits = np.bincount(group, weights=positive, minlength=levels.size)[::-1].cumsum()[::-1]
    marked = np.bincount(group, minlength=levels.size)[::-1].cumsum()[::-1]
    f1 = 2 * hits / (marked + positive.sum())
    # `argmax` would take the lowest of several thresholds with the largest F1.
    at = int(np.flatnonzero(f1 == f1.max())[-1])
    if at == 0:  # all cases are flagged, and no score lies below the lowest one to be halfway from
        return float(np.nextafter(levels[0], -np.inf))
    # Where no float lies between the two levels, halfway rounds to one of them, and where their difference overflows it is
    # infinite. The lower level then does as well: a case is flagged only above the threshold.
    halfway = float(levels[at - 1] + (levels[at] - levels[at - 1]) / 2)
    return halfway if levels[at - 1] <= halfway < levels[at] else float(levels[at - 1])


def _check(scores: Any, labels: Any) -> tuple[Vector, NDArray[np.bool_]]:
    """Return scores and labels as arrays, or raise `InvalidParameter`."""
    values, given = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != given.shape:
        raise InvalidParameter(
            f"scores and labels must be two lists of one length, not of shapes {values.shape} and {given.shape}"
        )
    if np.isnan(values).any():
        raise InvalidParameter("a score is NaN, which has no place in an order")
    # `astype(bool)` makes a label of every value; comparing shows where the label was no 0, 1, True or False.
    positive = given.astype(bool)
    if given.size and not np.array_equal(given, positive):
        raise InvalidParameter("a label says whether a case is positive: true or false")
    return values, positive


def _areas(values: Vector, positive: NDArray[np.bool_], weights: Vector) -> Vector:
    """Return the area for each row of ``weights`` (resamples, cases), with NaN where a class has no weight."""
    # Equal scores form one group, of which only the weights matter: a tie between the classes counts one half.
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    sorted_weights, is_positive = weights[:, order], positive[order]
    up = np.add.reduceat(sorted_weights * is_positive, starts, axis=1)
    down = np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1)
    below = down.cumsum(1) - down / 2  # the negatives under each score, its own ones by half
    pairs = up.sum(1) * down.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, (up * below).sum(1) / pairs, np.nan)
