from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepsight.errors import InvalidParameter
from keepsight.eval.errors import EmptyFile
from keepsight.eval.stats.auroc import (
    Detection,
    auroc,
    auroc_interval,
    best_threshold,
    detect,
    paired_auroc,
)

cases = st.lists(
    st.tuples(st.integers(-6, 6), st.booleans(), st.integers(0, 4)), min_size=2, max_size=40
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def by_pairs(scores: list[float], labels: list[bool]) -> float:
    up = [score for score, label in zip(scores, labels, strict=True) if label]
    down = [score for score, label in zip(scores, labels, strict=True) if not label]
    return sum((a > b) + 0.5 * (a == b) for a in up for b in down) / (len(up) * len(down))


@pytest.mark.parametrize(
    ("scores", "labels", "area"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # 3 of the 4 pairs stand right
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([5, 5, 5], [0, 1, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),  # 3 pairs right and one tie
        ([2, 2, 2, 1, 3], [1, 1, 0, 0, 0], 0.5),  # ties 2, right 2, wrong 2
        ([-math.inf, 0, math.inf], [0, 0, 1], 1.0),
    ],
)
def test_worked_areas(scores: list[float], labels: list[int], area: float) -> None:
    assert auroc(scores, labels) == area


def test_no_area_without_two_classes() -> None:
    assert auroc([], []) is None
    assert auroc([1.0, 2.0], [True, True]) is None
    assert auroc_interval([1.0, 2.0], [False, False], "ab") is None
    assert auroc_interval([], [], []) is None
    assert auroc_interval([1.0, 2.0], [False, True], "ab", resamples=0) is None


@quick
@given(cases)
def test_laws_of_the_area(rows: list[tuple[int, bool, int]]) -> None:
    scores, labels, _ = (list(column) for column in zip(*rows, strict=True))
    area = auroc(scores, labels)
    assert area == pytest.approx(by_pairs(scores, labels), abs=1e-12)
    assert auroc([math.exp(score / 3) for score in scores], labels) == area  # only the order matters
    assert auroc([-score for score in scores], labels) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(scores, [not label for label in labels]) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(scores[::-1], labels[::-1]) == pytest.approx(area, abs=1e-12)
    assert auroc(scores * 2, labels * 2) == pytest.approx(area, abs=1e-12)


@quick
@given(cases, st.integers(0, 3))
def test_interval_is_that_of_drawing_images_by_hand(rows: list[tuple[int, bool, int]], seed: int) -> None:
    scores, labels, images = (list(column) for column in zip(*rows, strict=True))
    names = list(dict.fromkeys(images))
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=25)
    areas = []
    for count in times:
        drawn = [
            (score, label)
            for score, label, image in zip(scores, labels, images, strict=True)
            for _ in range(count[names.index(image)])
        ]
        if len({label for _, label in drawn}) == 2:
            areas.append(by_pairs(*(list(column) for column in zip(*drawn, strict=True))))
    found = auroc_interval(scores, labels, images, resamples=25, seed=seed)
    if not areas:
        assert found is None
    else:
        assert found == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=1e-9)


def test_interval_narrows_with_images_and_holds_the_area() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for images in (30, 300):
        labels = draw.random(3 * images) < 0.3
        scores = draw.normal(size=3 * images) + labels
        low, high = auroc_interval(scores, labels, [i // 3 for i in range(3 * images)])
        assert low < auroc(scores, labels) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_images_count_and_not_cases() -> None:
    # One image repeated is no more evidence: all its cases come and go together
    scores, labels = [0.0, 1.0, 0.5, 0.2] * 5, [False, True, False, True] * 5
    each = auroc_interval(scores, labels, list(range(20)))
    assert auroc_interval(scores, labels, [0] * 20) == (auroc(scores, labels),) * 2
    assert each[1] - each[0] > 0.2


def test_paired_difference() -> None:
    draw = np.random.default_rng(1)
    labels, images = draw.random(600) < 0.3, [i // 3 for i in range(600)]
    weak = draw.normal(size=600) + labels
    strong = weak + labels
    better = paired_auroc(weak, strong, labels, images)
    assert better.value == pytest.approx(auroc(strong, labels) - auroc(weak, labels))
    assert better.low < better.value < better.high
    assert better.clear
    # The same cases: the two vary together, so that the difference is known better than either
    low, high = auroc_interval(weak, labels, images)
    assert better.high - better.low < high - low
    worse = paired_auroc(strong, weak, labels, images)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    same = paired_auroc(weak, 2 * weak, labels, images)
    assert (same.value, same.low, same.high, same.clear) == (0, 0, 0, False)
    assert paired_auroc([1.0], [2.0], [True], "a").value is None


def test_detection_by_hand() -> None:
    scores, labels = [3.0, 2.0, 2.0, 1.0], [True, True, False, False]
    assert detect(scores, labels, 1.5) == Detection(0.75, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert detect(scores, labels, 2.0) == Detection(0.25, 1.0, 0.5, pytest.approx(2 / 3))
    assert detect(scores, labels, 9.0) == Detection(0.0, None, 0.0, 0.0)
    assert detect([], [], 0.0) == Detection(None, None, None, None)
    assert detect([1.0], [False], 2.0) == Detection(0.0, None, None, None)


@quick
@given(cases)
def test_the_best_threshold_is_best_and_flags_something(rows: list[tuple[int, bool, int]]) -> None:
    scores, labels, _ = (list(column) for column in zip(*rows, strict=True))
    best = detect(scores, labels, best_threshold(scores, labels))
    assert best.flagged > 0
    tried = [detect(scores, labels, at / 2).f1 for at in range(-15, 15)]
    assert best.f1 == pytest.approx(max(tried))


def test_best_threshold_between_neighbouring_numbers() -> None:
    above = math.nextafter(1.0, 2.0)
    assert 1.0 <= best_threshold([1.0, above], [False, True]) < above
    assert best_threshold([1.0, 3.0], [False, True]) == 2.0
    assert best_threshold([1.0, 1.0], [True, True]) < 1.0


def test_a_threshold_needs_something_to_find() -> None:
    with pytest.raises(EmptyFile, match="none is positive"):
        best_threshold([1.0], [False])
    with pytest.raises(InvalidParameter, match="infinite"):
        best_threshold([1.0, -math.inf], [False, True])


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([1.0, math.nan], [True, False]),
        ([1.0], [True, False]),
        ([[1.0]], [[True]]),
        ([1.0, 2.0], [2, 0]),
        ([1.0, 2.0], [math.nan, 0]),
    ],
)
def test_what_is_no_score_or_label_is_refused(scores: Any, labels: Any) -> None:
    for function in (auroc, best_threshold, lambda a, b: detect(a, b, 0.0)):
        with pytest.raises(InvalidParameter):
            function(scores, labels)


def test_bad_bootstraps_are_refused() -> None:
    for options in ({"resamples": -1}, {"level": 1.0}):
        with pytest.raises(InvalidParameter):
            auroc_interval([1.0, 2.0], [True, False], "ab", **options)
    with pytest.raises(InvalidParameter, match="as many images"):
        auroc_interval([1.0, 2.0], [True, False], "a")
