"""MDI and AEI: worked numbers, the laws of the definition, every choice of a reading, and figures over answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepsight.errors import InvalidParameter
from keepsight.eval.modality_dominance.score import (
    PARTS,
    Dominance,
    Masses,
    Reading,
    by_layer,
    dominance,
    groups,
)
from keepsight.eval.modality_dominance.summary import difference, readings, share_curve, summary

POSITIVE = st.floats(1e-3, 1e3)
COUNT = st.integers(1, 4000)


def masses(attention: object, counts: object, rows: int = 2) -> Masses:
    """One answer of ``rows`` tokens: attention ``(layers, heads, parts)`` of a mean row, tokens of each part."""
    given = np.asarray(attention, dtype=float)
    tokens = np.asarray(counts, dtype=float) * rows
    shares = np.tile(given[..., 0].mean(1), (rows, 1))
    return Masses(given * rows, tokens, shares)


def drawn(n: int, *, layers: int = 6, heads: int = 2, seed: int = 0) -> list[Masses]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        attention = draw.dirichlet(np.ones(len(PARTS)), size=(layers, heads))
        found.append(masses(attention, [64, 1, 2, 4, 6, 3], rows=int(draw.integers(2, 9))))
    return found


def test_the_worked_check() -> None:
    found = dominance(0.5, 0.5, 35, 576)
    assert found.mdi == pytest.approx(16.457, abs=5e-4)
    assert found.aei_text == pytest.approx(8.729, abs=5e-4)
    assert found.aei_image == pytest.approx(0.530, abs=5e-4)


def test_by_hand() -> None:
    # 3/4 of the attention on 10 tokens, 1/4 on 30: (.75/10)/(.25/30) = 9; .75/(10/40) = 3; .25/(30/40) = 1/3
    assert dominance(3, 1, 10, 30) == Dominance(9.0, 3.0, pytest.approx(1 / 3))


@settings(deadline=None, derandomize=True)
@given(POSITIVE, POSITIVE, COUNT, COUNT, POSITIVE)
def test_laws(text: float, image: float, words: int, patches: int, scale: float) -> None:
    found = dominance(text, image, words, patches)
    assert found.mdi is not None
    assert found.aei_text is not None
    assert found.aei_image is not None
    assert found.mdi == pytest.approx(found.aei_text / found.aei_image)
    scaled = dominance(scale * text, scale * image, words, patches)
    assert scaled.mdi == pytest.approx(found.mdi)
    assert scaled.aei_text == pytest.approx(found.aei_text)
    swapped = dominance(image, text, patches, words)
    assert swapped.mdi == pytest.approx(1 / found.mdi)
    # Both AEI, weighted by how many tokens there are, come to 1
    mean = (words * found.aei_text + patches * found.aei_image) / (words + patches)
    assert mean == pytest.approx(1)


@settings(deadline=None, derandomize=True)
@given(COUNT, COUNT)
def test_attention_spread_evenly_is_balanced(words: int, patches: int) -> None:
    assert dominance(words, patches, words, patches) == Dominance(*3 * [pytest.approx(1)])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 0, 347), (None, None, 1.0)),  # no text
        ((1, 0, 9, 0), (None, 1.0, None)),  # no picture
        ((1, 0, 9, 3), (None, 4 / 3, 0.0)),  # nothing looks at the picture
        ((0, 1, 9, 3), (0.0, 0.0, 4.0)),
        ((0, 0, 9, 3), (None, None, None)),
        ((0, 0, 0, 0), (None, None, None)),
    ],
)
def test_zero_denominators_give_null(values: tuple[int, ...], expected: tuple[float | None, ...]) -> None:
    assert dominance(*values) == Dominance(*expected)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_is_no_amount_is_refused(bad: float) -> None:
    for place in range(4):
        values = [0.5, 0.5, 35.0, 576.0]
        values[place] = bad
        with pytest.raises(InvalidParameter, match="finite and not negative"):
            dominance(*values)


def test_groups_of_layers() -> None:
    assert groups(32) == {
        "early": (0, 1),
        "middle": (15, 16),
        "late": (30, 31),
        "all": tuple(range(32)),
    }
    assert [groups(6)[name] for name in ("early", "middle", "late")] == [(0, 1), (2, 3), (4, 5)]
    assert [groups(7)[name] for name in ("early", "middle", "late")] == [(0, 1), (2, 3), (5, 6)]
    assert [groups(2)[name] for name in ("early", "middle", "late")] == 3 * [(0, 1)]
    assert [groups(1)[name] for name in ("early", "middle", "late")] == 3 * [(0,)]
    assert groups(6, 3)["middle"] == (1, 2, 3)


# image bos special before after own; one layer, two heads
ONE = masses(
    [[[0.20, 0.40, 0.10, 0.10, 0.10, 0.10], [0.60, 0.10, 0.10, 0.05, 0.05, 0.10]]], [8, 1, 2, 3, 4, 0.5]
)


@pytest.mark.parametrize(
    ("reading", "text", "words"),
    [
        (Reading(), 0.25 + 0.10 + 0.075 + 0.075, 10),
        (Reading(text=("special", "before", "after")), 0.10 + 0.075 + 0.075, 9),
        (Reading(text=("before", "after")), 0.15, 7),
        (Reading(text=("bos", "special", "after")), 0.25 + 0.10 + 0.075, 7),
        (Reading(text=("after",)), 0.075, 4),
        (Reading(text=("bos", "special", "before", "after", "own")), 0.60, 10.5),
    ],
)
def test_every_choice_of_text(reading: Reading, text: float, words: float) -> None:
    [layer] = by_layer(ONE, reading)
    expected = dominance(text, 0.40, words, 8)
    assert layer["mdi"] == pytest.approx(expected.mdi)
    assert layer["aei_text"] == pytest.approx(expected.aei_text)
    assert layer["aei_image"] == pytest.approx(expected.aei_image)
    assert layer["image_share"] == pytest.approx(0.40)  # of all attention, whatever counts as text


def test_heads_before_or_after_the_ratio() -> None:
    one, other = dominance(0.70, 0.20, 10, 8), dominance(0.30, 0.60, 10, 8)
    assert one.mdi is not None
    assert other.mdi is not None
    [each] = by_layer(ONE, Reading(heads="each"))
    assert each["mdi"] == pytest.approx((one.mdi + other.mdi) / 2)
    [mean] = by_layer(ONE)
    assert mean["mdi"] == pytest.approx(dominance(0.50, 0.40, 10, 8).mdi)
    assert mean["mdi"] != pytest.approx(each["mdi"])


def test_a_group_is_the_mean_of_its_layers() -> None:
    [answer] = drawn(1, layers=7)
    layers = by_layer(answer)
    found = summary([answer], Reading(group=3))
    for name, picked in groups(7, 3).items():
        for figure, estimate in found[name].items():
            mean = sum(float(layers[at][figure] or 0) for at in picked) / len(picked)
            assert estimate.value == pytest.approx(mean)
            assert (estimate.low, estimate.high, estimate.n) == (None, None, 1)  # one answer has no interval


def test_mean_of_samples_and_pooled() -> None:
    short = masses([[[0.5, 0.5, 0, 0, 0, 0]]], [4, 1, 0, 0, 0, 0], rows=1)  # MDI 4
    long = masses([[[0.2, 0.8, 0, 0, 0, 0]]], [4, 1, 0, 0, 0, 0], rows=3)  # MDI 16
    assert summary([short, long])["all"]["mdi"].value == pytest.approx(10)
    # One row of 0.5 and three of 0.2: 1.1 on the picture, 2.9 on the text
    pooled = summary([short, long], Reading(average="pooled"))
    assert pooled["all"]["mdi"].value == pytest.approx((2.9 / 1) / (1.1 / 4))
    assert pooled["all"]["image_share"].value == pytest.approx(1.1 / 4)
    for average in ("samples", "pooled"):
        alike = summary([long, long, long], Reading(average=average))["all"]["mdi"]
        assert alike.value == pytest.approx(16)
        assert (alike.low, alike.high) == (pytest.approx(16), pytest.approx(16))


@pytest.mark.parametrize("average", ["samples", "pooled"])
@pytest.mark.parametrize("heads", ["mean", "each"])
def test_the_bootstrap_resamples_answers(average: str, heads: str) -> None:
    """Against resamples drawn out as lists of answers."""
    answers, reading = drawn(12), Reading(average=average, heads=heads)
    found = summary(answers, reading, resamples=60, seed=5)
    times = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=60)
    again = [
        summary([one for one, count in zip(answers, row, strict=True) for _ in range(count)], reading, resamples=0)
        for row in times
    ]  # fmt: skip
    for name, figures in found.items():
        for figure, estimate in figures.items():
            values = [one[name][figure].value or 0 for one in again]
            assert [estimate.low, estimate.high] == pytest.approx(
                np.quantile(values, [0.025, 0.975]).tolist()
            )
            assert estimate.n == 12
    assert summary(answers, reading, resamples=60, seed=5) == found


@pytest.mark.parametrize("average", ["samples", "pooled"])
def test_differences_are_paired(average: str) -> None:
    before = drawn(10)
    after = [replace(one, attention=one.attention * [1.5, 1, 1, 1, 1, 1]) for one in before]
    reading = Reading(average=average)
    found = difference(before, after, reading, resamples=200)["all"]["mdi"]
    first, second = (summary(some, reading)["all"]["mdi"] for some in (before, after))
    assert found.value == pytest.approx((second.value or 0) - (first.value or 0))
    assert found.value == pytest.approx(-(first.value or 0) / 3)  # 1/1.5 - 1, in every resample as well
    assert first.low is not None
    assert first.high is not None
    assert found.low == pytest.approx(-first.high / 3, rel=0.1)
    assert found.high is not None
    assert found.high < 0
    same = difference(before, before, reading, resamples=50)["late"]["aei_text"]
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_an_answer_without_a_figure_is_counted_out() -> None:
    some = drawn(3)
    blind = some[0].attention.copy()
    blind[0, :, 0] = 0  # nothing in layer 0 looks at the picture
    answers = [replace(some[0], attention=blind), *some[1:]]
    found = summary(answers)
    assert (found["early"]["mdi"].n, found["all"]["mdi"].n, found["late"]["mdi"].n) == (2, 2, 3)
    assert found["early"]["mdi"] == replace(summary(some[1:])["early"]["mdi"], low=found["early"]["mdi"].low,
                                            high=found["early"]["mdi"].high)  # fmt: skip
    assert found["early"]["aei_image"].n == 3
    paired = difference(some, answers)["early"]["mdi"]
    assert (paired.value, paired.n) == (pytest.approx(0), 2)
    nothing = summary([replace(some[0], attention=blind)])["early"]["mdi"]
    assert (nothing.value, nothing.low, nothing.n) == (None, None, 0)
    # Pooled, the others' attention makes up for it
    assert summary(answers, Reading(average="pooled"))["early"]["mdi"].n == 3
    blinded = [replace(one, attention=one.attention * [0, 1, 1, 1, 1, 1]) for one in some]
    gone = difference(some, blinded, Reading(average="pooled"))["all"]["mdi"]
    assert (gone.value, gone.low, gone.n) == (None, None, 0)
    textless = [replace(one, tokens=one.tokens * [1, 0, 0, 0, 0, 0]) for one in some]
    assert summary(textless, Reading(average="pooled"))["all"]["mdi"].value is None


def test_the_share_curve() -> None:
    attention = [[[0.5, 0.5, 0, 0, 0, 0]], [[0.1, 0.9, 0, 0, 0, 0]]]
    long, short = (masses(attention, [4, 1, 0, 0, 0, 0], rows=rows) for rows in (3, 1))
    short = replace(short, shares=short.shares * 2)
    curve = share_curve([long, short])
    assert [point["n"] for point in curve] == [2, 1, 1]
    assert [point["token"] for point in curve] == [0, 1, 2]
    assert [point["image_share"] for point in curve] == [pytest.approx(v) for v in (0.45, 0.3, 0.3)]
    assert share_curve([long], [1])[0]["image_share"] == pytest.approx(0.1)
    assert share_curve([]) == []


def test_readings_are_one_change_each() -> None:
    found = readings(Reading(text=("after",), heads="each", average="pooled", group=3))
    plain = found["all text of the prompt"]
    assert plain == Reading(average="pooled", group=3)
    assert found["mean over answers"] == Reading(average="samples", group=3)
    assert len(set(found.values())) == len(found)
    assert (
        str(plain) == "text = bos+special+before+after; attention averaged over heads first; answers pooled"
    )
    assert found["with own"].to_json() == {
        "text": ["bos", "special", "before", "after", "own"], "heads": "mean", "average": "pooled", "group": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ()}, "at least one part"),
        ({"text": ("after", "after")}, "none twice"),
        ({"text": ("imgae",)}, "text: no 'imgae'"),
        ({"text": ("image",)}, "text: no 'image'"),
        ({"text": ("bso",)}, "did you mean 'bos'"),
        ({"heads": "max"}, "heads: no 'max'"),
        ({"average": "pool"}, "did you mean 'pooled'"),
        ({"group": 0}, "group=0"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        Reading(**options)  # type: ignore[arg-type]


def test_answers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="at least one picture"):
        summary([])
    with pytest.raises(InvalidParameter, match="different layers or heads"):
        summary([*drawn(1), *drawn(1, layers=5)])
    with pytest.raises(InvalidParameter, match="2 answers cannot be paired with 1"):
        difference(drawn(2), drawn(1))
    with pytest.raises(InvalidParameter, match="resamples"):
        summary(drawn(2), resamples=-1)
