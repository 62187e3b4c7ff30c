from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepsight.errors import InvalidParameter
from keepsight.eval.errors import EmptyFile, UnpairedReports
from keepsight.eval.pope.answer_parsers import PARSERS
from keepsight.eval.pope.compare_parsers import compare_parsers
from keepsight.eval.pope.official_output import published
from keepsight.eval.pope.score import METRICS, Reply, YesNoReport, mean, paired, score
from keepsight.eval.stats.bootstrap import interval, mean_interval

KINDS = {
    "tp": ("yes", "Yes"),
    "fp": ("no", "Yes"),
    "tn": ("no", "No"),
    "fn": ("yes", "No"),
    "lost yes": ("yes", "?"),
    "lost no": ("no", "?"),
}
MANY = st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=30)


def replies(kinds: Sequence[str], per_image: int = 3) -> list[Reply]:
    return [
        Reply(question_id=at, image=at // per_image, label=KINDS[kind][0], answer=KINDS[kind][1])
        for at, kind in enumerate(kinds)
    ]


def shuffled(kinds: list[str]) -> list[str]:
    return random.Random(0).sample(kinds, len(kinds))


def judged(*kinds: str, **options: object) -> YesNoReport:
    return score(replies(kinds), **{"resamples": 0, **options})


def test_worked_example() -> None:
    report = judged(*["tp"] * 3, "fp", *["tn"] * 2, "fn", "lost yes", "lost yes", "lost no")
    counts = report.counts
    assert (counts.tp, counts.fp, counts.tn, counts.fn) == (3, 1, 2, 1)
    assert (counts.unparsed, counts.unparsed_yes, counts.unparsed_no, report.n) == (3, 2, 1, 10)
    assert report.accuracy == 0.5
    assert report.precision == 0.75
    assert report.recall == 0.5  # of six questions whose answer is yes
    assert report.f1 == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert report.yes_ratio == 0.4  # of all answers, not of the labels


def test_nothing_to_divide_by_is_none() -> None:
    report = judged("tn", "tn")
    assert (report.accuracy, report.precision, report.recall, report.f1, report.yes_ratio) == (
        1,
        None,
        None,
        None,
        0,
    )
    assert report.ci["precision"] is None
    assert mean({"a": report, "b": judged("tp")}).precision is None
    with pytest.raises(EmptyFile):
        score([])


@given(MANY)
def test_laws_of_the_figures(kinds: list[str]) -> None:
    report = judged(*kinds)
    counts = report.counts
    assert counts.tp + counts.fp + counts.tn + counts.fn + counts.unparsed == report.n == len(kinds)
    for name in METRICS:
        assert getattr(report, name) is None or 0 <= getattr(report, name) <= 1
    if report.precision and report.recall:
        harmonic = 2 * report.precision * report.recall / (report.precision + report.recall)
        assert math.isclose(report.f1, harmonic)
        assert min(report.precision, report.recall) <= report.f1 + 1e-12
    alike = judged(*kinds[::-1])
    assert (alike.counts, alike.f1) == (report.counts, report.f1)


@given(MANY)
def test_an_unreadable_answer_never_helps(kinds: list[str]) -> None:
    lost = [kind if kind.startswith("lost") else f"lost {KINDS[kind][0]}" for kind in kinds[:1]] + kinds[1:]
    before, after = judged(*kinds), judged(*lost)
    assert after.accuracy <= before.accuracy
    assert (after.recall or 0) <= (before.recall or 0)
    assert after.yes_ratio <= before.yes_ratio


@given(MANY)
def test_swapping_the_labels_swaps_right_and_wrong(kinds: list[str]) -> None:
    other = {"tp": "fp", "fp": "tp", "tn": "fn", "fn": "tn", "lost yes": "lost no", "lost no": "lost yes"}
    a, b = judged(*kinds), judged(*(other[kind] for kind in kinds))
    assert (a.counts.tp, a.counts.tn, a.yes_ratio) == (b.counts.fp, b.counts.fn, b.yes_ratio)


def test_intervals_draw_images_and_repeat_with_the_seed() -> None:
    kinds = shuffled(["tp", "tp", "tn", "fn", "fn", "fp", "lost no"] * 17)
    report = judged(*kinds, resamples=500, seed=3)
    assert report.ci == judged(*kinds, resamples=500, seed=3).ci
    assert report.ci != judged(*kinds, resamples=500, seed=4).ci
    for name in METRICS:
        low, high = report.ci[name]
        assert low <= getattr(report, name) <= high
    # Two kinds of image, right or wrong as a whole: the interval is that of 40 draws, wider than that of 120
    whole = score(replies(["tp"] * 60 + ["fn"] * 60), resamples=500)
    apart = score(replies(["tp"] * 60 + ["fn"] * 60, per_image=1), resamples=500)
    width = [high - low for low, high in (whole.ci["accuracy"], apart.ci["accuracy"])]
    assert width[0] > 1.4 * width[1]
    assert set(judged("tp").ci.values()) == {None}


def test_the_mean_is_of_the_splits_figures_not_of_all_answers() -> None:
    a, b = judged("tp", "tp", "fp", resamples=200), judged("tp", "fn", *["tn"] * 4, resamples=200)
    both = mean({"random": a, "popular": b})
    assert both.f1 == (a.f1 + b.f1) / 2
    assert both.n == 9
    assert both.splits == ("random", "popular")
    alone = mean({"random": a})
    assert (alone.f1, alone.ci) == (a.f1, a.ci)
    with pytest.raises(UnpairedReports, match="different parsers"):
        mean({"a": a, "b": judged("tp", parser="mme")})
    with pytest.raises(EmptyFile):
        mean({})


def test_a_paired_difference_is_narrower_than_the_figures_and_has_the_right_sign() -> None:
    kinds = shuffled(["tp", "tn", "fn", "fp", "tp", "tn"] * 30)
    wrong = [at for at, kind in enumerate(kinds) if kind == "fn"][:10]
    better = ["tp" if at in wrong else kind for at, kind in enumerate(kinds)]
    before, after = {"x": judged(*kinds, resamples=400)}, {"x": judged(*better, resamples=400)}
    change = paired(before, after, "accuracy", resamples=400)
    assert change.value == pytest.approx(10 / 180)
    assert change.low <= change.value <= change.high
    assert change.clear
    low, high = before["x"].ci["accuracy"]
    assert change.high - change.low < high - low
    back = paired(after, before, "accuracy", resamples=400)
    assert (back.value, back.low, back.high) == pytest.approx((-change.value, -change.high, -change.low))
    nothing = paired(before, before, "f1", resamples=50)
    assert (nothing.value, nothing.low, nothing.high, nothing.clear) == (0, 0, 0, False)


def test_what_cannot_be_paired_is_refused() -> None:
    one = {"x": judged("tp", "tn")}
    with pytest.raises(InvalidParameter, match="did you mean 'accuracy'"):
        paired(one, one, "acuracy")
    for other, words in (
        ({"y": judged("tp", "tn")}, "different splits"),
        ({"x": judged("tp")}, "1 questions are not the same"),
        ({"x": judged("tp", "fp", "fn")}, "not the same"),
        ({"x": judged("tp", "tn", parser="opera")}, "one parser"),
    ):
        with pytest.raises(UnpairedReports, match=words):
            paired(one, other)
    assert paired({"x": judged("tn")}, {"x": judged("fp")}, "precision").value is None


def test_a_question_answered_twice_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="twice"):
        score([*replies(["tp"]), *replies(["tn"])])


def test_published_figures_keep_each_evaluators_oddities() -> None:
    kinds = ["tp", "tp", "fp", "tn", "fn", "lost yes"]
    lmms = published(judged(*kinds, parser="lmms_eval"))
    assert lmms == pytest.approx(
        {"accuracy": 0.5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 4 / 6}
    )
    kit = published(judged(*kinds, parser="vlmevalkit"))
    assert kit == pytest.approx({"accuracy": 0.5, "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7})
    only_no = {"accuracy": 1.0, "precision": None, "recall": None, "f1": None, "yes_ratio": 0.0}
    assert published(judged("tn", parser="official")) == only_no
    assert published(judged("tn", parser="lmms_eval"))["f1"] == 0
    assert published(judged("fp", "fn", parser="vcd"))["f1"] is None
    assert published(judged("tp")) is None


def test_every_rule_is_laid_beside_strict() -> None:
    rows = {
        row.parser: row
        for row in compare_parsers({"a": replies(["tp", "lost no"]), "b": replies(["tn", "fn"])})
    }
    assert list(rows) == list(PARSERS)
    assert (rows["strict"].differs, rows["strict"].unparsed, rows["strict"].n) == (0, 1, 4)
    assert (rows["official"].differs, rows["official"].unparsed) == (1, 0)
    assert rows["official"].accuracy == 0.5  # "?" counts as yes, and the label is no
    assert rows["vcd"].yes_ratio == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=12))
def test_the_interval_of_a_mean_of_one_is_the_interval(pairs: list[tuple[int, int]]) -> None:
    top, bottom = zip(*pairs, strict=True)
    one = interval(top, bottom, resamples=50)
    assert mean_interval([(top, bottom)], resamples=50) == pytest.approx(one)
    assert mean_interval([(top, bottom)] * 2, resamples=50) == pytest.approx(one)
    assert mean_interval([(top, bottom)], minus=[(top, bottom)], resamples=50) == (0, 0)


@pytest.mark.parametrize(
    "parts", [[], [([1], [1, 2])], [([1], [1]), ([1, 2], [1, 2])], [([], [])], [([[1]], [[1]])]]
)
def test_parts_of_different_lengths_are_refused(parts: list) -> None:
    with pytest.raises(InvalidParameter, match="one length"):
        mean_interval(parts)
