from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from keepsight.errors import InvalidParameter
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.score import Report, score
from keepsight.eval.errors import UnpairedReports
from keepsight.eval.stats import bootstrap
from keepsight.eval.stats.bootstrap import (
    combined_interval,
    interval,
    joint_intervals,
    paired,
    resample_counts,
)


def report(texts: list[str], truth: list[list[str]], **options: int) -> Report:
    captions = [Caption(image, text) for image, text in enumerate(texts)]
    return score(captions, dict(enumerate(truth)), **options)


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    # 40 of 200: the normal approximation gives 0.2 ± 1.96 * sqrt(0.2 * 0.8 / 200) = [0.1446, 0.2554].
    low, high = interval([1] * 40 + [0] * 160, [1] * 200, resamples=20000) or (0, 0)
    assert low == pytest.approx(0.1446, abs=0.005)
    assert high == pytest.approx(0.2554, abs=0.005)


def test_interval_is_that_of_resampling_image_by_image() -> None:
    numbers = np.random.default_rng(5)
    bottom = numbers.integers(1, 9, 60)
    top = numbers.binomial(bottom, 0.3)
    drawn = numbers.integers(0, 60, (20000, 60))
    expected = np.quantile(top[drawn].sum(1) / bottom[drawn].sum(1), [0.025, 0.975])
    assert interval(top, bottom, resamples=20000) == pytest.approx(tuple(expected), abs=0.004)


def test_interval_is_seeded_and_reacts_to_the_seed() -> None:
    data = ([0, 1, 2, 0, 1, 3], [3, 3, 4, 2, 5, 3])
    assert interval(*data, seed=3) == interval(*data, seed=3)
    assert interval(*data, seed=3, resamples=50) != interval(*data, seed=4, resamples=50)


def test_interval_without_spread_or_without_denominator() -> None:
    assert interval([1, 1, 1], [2, 2, 2]) == (0.5, 0.5)
    assert interval([0, 0], [0, 0]) is None
    assert interval([1], [1], resamples=0) is None


@pytest.mark.parametrize(
    ("top", "bottom", "options"),
    [([1], [1, 2], {}), ([], [], {}), ([1], [1], {"level": 1.0}), ([1], [1], {"resamples": -1})],
)
def test_interval_refuses_what_makes_no_sense(top: list[int], bottom: list[int], options: dict) -> None:
    with pytest.raises(InvalidParameter):
        interval(top, bottom, **options)


def test_captions_of_one_image_are_resampled_together() -> None:
    # Every caption of an image is alike, so 5 captions an image must not narrow the interval of 20 images.
    texts, truth = ["a dog", "a cat"] * 10, {image: ["cat"] for image in range(20)}
    once = score([Caption(i, text) for i, text in enumerate(texts)], truth, resamples=4000)
    five = score([Caption(i, text) for i, text in enumerate(texts) for _ in range(5)], truth, resamples=4000)
    assert five.ci["chair_s"] == once.ci["chair_s"]


def test_value_lies_in_its_interval_for_every_figure() -> None:
    texts = ["a dog and a cat on a table", "a bowl", "nothing", "two men and a hot dog"] * 8
    made = report(texts, [["cat", "person"], ["bowl", "spoon"], ["dog"], ["person"]] * 8)
    for name, bounds in made.ci.items():
        assert bounds is not None
        assert bounds[0] <= getattr(made, name) <= bounds[1], name


def test_paired_difference_is_second_minus_first_and_finds_what_single_intervals_hide() -> None:
    # Hard images (all made up) and easy ones: the second method mends 1 of 5 hard captions and spoils none.
    hard, easy = ["a dog"] * 50, ["a cat"] * 50
    first = report(hard + easy, [["cat"]] * 100)
    second = report(["a cat"] * 10 + ["a dog"] * 40 + easy, [["cat"]] * 100)
    change = paired(first, second, "chair_s", resamples=4000)
    assert change.value == pytest.approx(-0.1)
    # Ten of a hundred images change: normal approximation -0.1 ± 1.96 * sqrt(0.1 * 0.9 / 100) = [-0.159, -0.041].
    assert (change.low, change.high) == (pytest.approx(-0.159, abs=0.012), pytest.approx(-0.041, abs=0.012))
    assert change.clear
    assert first.ci["chair_s"][0] < second.ci["chair_s"][1]
    back = paired(second, first, "chair_s", resamples=4000)
    assert (back.value, back.low, back.high) == (-change.value, -change.high, -change.low)


def test_paired_difference_of_a_report_to_itself_is_zero() -> None:
    made = report(["a dog", "a cat", "a bowl"], [["dog"], [], ["bowl", "cup"]])
    for metric in ("chair_i", "recall", "f1", "length"):
        change = paired(made, made, metric)
        assert (change.value, change.low, change.high, change.clear) == (0, 0, 0, False)


def test_paired_does_not_depend_on_the_order_of_captions() -> None:
    truth = {1: ["dog"], 2: ["cat"], 3: ["bowl"]}
    said = [Caption(1, "a dog"), Caption(2, "a dog"), Caption(3, "a bowl and a cup")]
    better = [Caption(1, "a dog"), Caption(2, "a cat"), Caption(3, "a bowl")]
    assert paired(score(said, truth), score(better, truth), "chair_i") == paired(
        score(said[::-1], truth), score(better, truth), "chair_i"
    )


def test_paired_refuses_what_cannot_be_compared() -> None:
    one, other = report(["a dog", "a cat"], [[], []]), report(["a dog"], [[]])
    with pytest.raises(UnpairedReports, match="different images"):
        paired(one, other, "chair_i")
    with pytest.raises(UnpairedReports, match="'pattern' and 'wordnet'"):
        paired(one, replace(one, family="wordnet"), "chair_i")
    with pytest.raises(InvalidParameter, match="did you mean 'chair_"):
        paired(one, one, "chair")


def test_paired_without_a_value_on_one_side_is_none() -> None:
    change = paired(report(["nothing"], [["dog"]]), report(["a dog"], [["dog"]]), "chair_i")
    assert (change.value, change.low, change.high, change.clear) == (None, None, None, False)


def test_joint_intervals_are_those_of_each_alone() -> None:
    a, b = ([1, 0, 2], [2, 1, 2]), ([0, 0, 1], [1, 0, 3])
    assert joint_intervals([a, b], resamples=200, seed=4) == [
        interval(*a, resamples=200, seed=4),
        interval(*b, resamples=200, seed=4),
    ]
    assert joint_intervals([a, b], resamples=0) == [None, None]
    with pytest.raises(InvalidParameter, match="lists of one length"):
        joint_intervals([a, ([1], [1])])


def test_a_combined_figure_is_recomputed_on_the_same_images() -> None:
    part = [1, 0, 2, 1], [2, 1, 2, 3]
    twice = combined_interval([part, part], lambda ratios: ratios.sum(axis=1), resamples=200)
    assert twice == pytest.approx([2 * bound for bound in interval(*part, resamples=200) or ()])
    nothing = combined_interval([part, part], lambda ratios: ratios[:, 0] - ratios[:, 1], resamples=200)
    assert nothing == (0, 0)
    empty = [0, 0, 0, 0], [0, 0, 0, 0]
    assert combined_interval([part, empty], lambda ratios: ratios.sum(axis=1), resamples=200) is None
    assert combined_interval([part], lambda ratios: ratios[:, 0], resamples=0) is None


def test_counts_hang_on_units_resamples_and_seed_and_not_on_the_slices() -> None:
    whole, sliced = (
        np.concatenate([*resample_counts(5, resamples=23, seed=4, slice_size=size)]) for size in (100, 7)
    )
    assert whole.shape == (23, 5)
    assert (whole.sum(axis=1) == 5).all()
    np.testing.assert_array_equal(whole, sliced)
    other = np.concatenate([*resample_counts(5, resamples=23, seed=5, slice_size=100)])
    assert (whole != other).any()


@pytest.mark.parametrize(("units", "resamples"), [(0, 10), (3, -1)])
def test_counts_of_nothing_are_refused(units: int, resamples: int) -> None:
    with pytest.raises(InvalidParameter):
        next(resample_counts(units, resamples=resamples, seed=0, slice_size=10))


def test_resamples_are_drawn_in_one_place() -> None:
    package = Path(bootstrap.__file__).parents[2]
    drawing = [path.name for path in package.rglob("*.py") if "multinomial(" in path.read_text("utf-8")]
    assert drawing == ["bootstrap.py"]
