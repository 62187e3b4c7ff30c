"""How well a score tells invented words from supported ones: the area under the ROC curve, and the figures at a threshold.

The area is the chance that a case drawn among the positives scores higher than one drawn among the negatives, a tie
counting one half: 1 parts them perfectly, 0.5 is chance, 0 parts them perfectly the wrong way round. It is the rank
statistic of Mann and Whitney, so only the order of the scores matters.
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
    """The cases that a threshold flags, against the truth. Rates are fractions in [0, 1], None where nothing was counted.

    Attributes:
        flagged: share of the cases that are flagged.
        precision: share of the flagged cases that are positive.
        recall: share of the positive cases that are flagged.
        f1: their harmonic mean.
    """

    flagged: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the ROC curve, in [0, 1]; None where all cases are of one class.

    Args:
        scores: one number for each case, higher for "more likely positive"; infinities are ordered like numbers.
        labels: whether each case is positive.

    Raises:
        InvalidParameter: not two lists of one length, a NaN, or a label that is neither true nor false.

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
    """Percentile bootstrap interval of ``auroc``: images are drawn with replacement, an image's cases stay together.

    Args:
        images: the image of each case. An image without a case changes nothing and is not known here.
        resamples: 0 gives None.
        level: share of the resamples inside, in (0, 1).

    A resample in which all cases are of one class has no area and is left out; None if that happens to all of them.

    Raises:
        InvalidParameter: as ``auroc``, and for a parameter out of range.
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
    """How much larger the area of ``after`` is than that of ``before``, for the same cases, with its 95 % interval.

    Both areas are recomputed on the same resampled images. Arguments and errors are those of ``auroc_interval``.
    """
    first, second = auroc(before, labels), auroc(after, labels)
    if first is None or second is None:
        return Difference("auroc", None, None, None)
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
    """The area of every resample, NaN where it has none."""
    if len(images) != values.size:
        raise InvalidParameter(f"{values.size} scores need as many images, not {len(images)}")
    if resamples < 0 or not 0 < level < 1:
        raise InvalidParameter(f"resamples={resamples} must be 0 or more, level={level} between 0 and 1")
    if not values.size:
        return np.empty(0)
    place: dict[Hashable, int] = {}
    owner = np.array([place.setdefault(image, len(place)) for image in images])
    slice_size = max(1, 4_000_000 // values.size)  # at most 32 MB of weights at a time
    counts = resample_counts(len(place), resamples=resamples, seed=seed, slice_size=slice_size)
    return np.concatenate([np.empty(0), *(_areas(values, positive, times[:, owner]) for times in counts)])


def detect(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Detection:
    """What flagging every case that scores above ``threshold`` gives.

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
    """The threshold of ``detect`` with the largest F1, halfway between two neighbouring scores; of equals the highest.

    It flags at least one case. Choose it on other data than it is reported on.

    Raises:
        EmptyFile: no case is positive, so that nothing can be found.
        InvalidParameter: as ``auroc``, and for an infinite score.
    """
    values, positive = _check(scores, labels)
    if np.isinf(values).any():
        raise InvalidParameter("a score is infinite: there is no threshold beyond it")
    if not positive.any():
        raise EmptyFile("a threshold is chosen on positive and negative cases, and none is positive")
    levels, group = np.unique(values, return_inverse=True)
    hits = np.bincount(group, weights=positive, minlength=levels.size)[::-1].cumsum()[::-1]
    marked = np.bincount(group, minlength=levels.size)[::-1].cumsum()[::-1]
    f1 = 2 * hits / (marked + positive.sum())
    at = int(np.flatnonzero(f1 == f1.max())[-1])
    if at == 0:
        return float(np.nextafter(levels[0], -np.inf))
    halfway = float(levels[at - 1] + (levels[at] - levels[at - 1]) / 2)
    return halfway if levels[at - 1] <= halfway < levels[at] else float(levels[at - 1])


def _check(scores: Any, labels: Any) -> tuple[Vector, NDArray[np.bool_]]:
    values, given = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != given.shape:
        raise InvalidParameter(
            f"scores and labels must be two lists of one length, not of shapes {values.shape} and {given.shape}"
        )
    if np.isnan(values).any():
        raise InvalidParameter("a score is NaN, which has no place in an order")
    positive = given.astype(bool)
    if given.size and not np.array_equal(given, positive):
        raise InvalidParameter("a label says whether a case is positive: true or false")
    return values, positive


def _areas(values: Vector, positive: NDArray[np.bool_], weights: Vector) -> Vector:
    """The area for each row of ``weights`` ``(resamples, cases)``; NaN where a class has no weight."""
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    sorted_weights, is_positive = weights[:, order], positive[order]
    up = np.add.reduceat(sorted_weights * is_positive, starts, axis=1)
    down = np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1)
    below = down.cumsum(1) - down / 2  # the negatives under each score, its own ones by half
    pairs = up.sum(1) * down.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs > 0, (up * below).sum(1) / pairs, np.nan)
