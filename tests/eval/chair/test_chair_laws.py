"""Laws that every CHAIR score obeys, whatever is said of whatever images."""

from __future__ import annotations

import json
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.report import METRICS, Report
from keepsight.eval.chair.score import COCO, mentions, score, words

RATES = ("chair_s", "chair_i", "recall", "precision", "f1", "no_object")
OBJECTS = sorted(COCO.objects)
laws = settings(max_examples=60, deadline=None, derandomize=True)

piece = st.sampled_from(
    [
        *COCO.words,
        *COCO.pairs,
        "a",
        "the",
        "two",
        "near",
        "nothing",
        "seat",
        "toilet",
        "buses",
        "men",
        "İ",
        "ẞ",
        "🐶",
    ]
)
mark = st.sampled_from([" ", " ", " ", ", ", ". ", "; ", "\n", "-", "/", "'s ", "  "])
text = st.one_of(
    st.lists(st.tuples(piece, mark), max_size=12).map(lambda pairs: "".join(chain.from_iterable(pairs))),
    st.text(max_size=40),
)
objects = st.frozensets(st.sampled_from(OBJECTS), max_size=6)
TRUTH_SIZE = 4
truths = st.lists(objects, min_size=TRUTH_SIZE, max_size=TRUTH_SIZE).map(lambda sets: dict(enumerate(sets)))
captions = st.lists(st.builds(Caption, st.integers(0, TRUTH_SIZE - 1), text), min_size=1, max_size=6)


def judged(said: list[Caption], truth: dict[int, frozenset[str]]) -> Report:
    return score(said, truth, resamples=0)


def sums(report: Report) -> dict[str, tuple[int, int]]:
    """Numerator and denominator of every figure."""
    return {
        name: (sum(map(top, report.captions)), sum(map(bottom, report.captions)))
        for name, (top, bottom) in METRICS.items()
    }


def figures(report: Report) -> dict[str, float | None]:
    return {name: getattr(report, name) for name in METRICS}


@laws
@given(captions, truths, st.randoms(use_true_random=False))
def test_the_order_of_captions_does_not_matter(said: list[Caption], truth: dict, draw) -> None:
    mixed = draw.sample(said, len(said))
    assert figures(judged(mixed, truth)) == figures(judged(said, truth))


@laws
@given(captions, truths)
def test_rates_are_fractions_or_nothing(said: list[Caption], truth: dict) -> None:
    report = score(said, truth, resamples=20)
    for name in RATES:
        value, bounds = getattr(report, name), report.ci[name]
        assert value is None or 0 <= value <= 1
        assert bounds is None or 0 <= bounds[0] <= bounds[1] <= 1
        assert value is not None or bounds is None
    json.dumps(report.to_json(), allow_nan=False)


@laws
@given(text)
def test_spans_hold_the_words_in_order(caption: str) -> None:
    at = 0
    for word in words(caption):
        start, end = word.span
        assert at <= start < end <= len(caption)
        assert not caption[at:start].strip()
        at = end
    for mention in mentions(caption):
        start, end = mention.span
        # The text of a mention names its object by itself, wherever it stood.
        assert mention.object in {alone.object for alone in mentions(caption[start:end])}
        assert COCO.words[mention.word] == mention.object


@laws
@given(captions, truths, st.integers(0, TRUTH_SIZE - 1), st.data())
def test_a_supported_mention_more_never_raises_chair_i(
    said: list[Caption], truth: dict, image: int, data
) -> None:
    before = judged(said, truth).chair_i
    if not truth[image] or before is None:
        return
    # "seat" and "toilet" change what the rest of a caption says, so the mention comes in a caption of its own.
    name = data.draw(st.sampled_from(sorted(truth[image])))
    spoken = next(word for word in COCO.words if COCO.words[word] == name and mentions(f"a {word}"))
    after = judged([*said, Caption(image, f"a {spoken}")], truth)
    assert after.chair_i is not None
    assert after.chair_i <= before


@laws
@given(captions, captions, truths)
def test_files_together_are_the_sum_of_the_files(
    first: list[Caption], second: list[Caption], truth: dict
) -> None:
    one, other, both = (sums(judged(said, truth)) for said in (first, second, first + second))
    for name in METRICS:
        assert both[name] == (one[name][0] + other[name][0], one[name][1] + other[name][1])


@laws
@given(captions, truths)
def test_a_caption_without_objects_leaves_chair_i_and_precision(said: list[Caption], truth: dict) -> None:
    before, after = judged(said, truth), judged([*said, Caption(0, "Nothing here.")], truth)
    assert (after.chair_i, after.precision) == (before.chair_i, before.precision)
    assert sums(after)["chair_s"] == (sums(before)["chair_s"][0], sums(before)["chair_s"][1] + 1)


@laws
@given(captions, truths, st.sampled_from(OBJECTS))
def test_an_object_more_in_an_image_makes_nothing_more_hallucinated(
    said: list[Caption], truth: dict, name: str
) -> None:
    more = {image: known | {name} for image, known in truth.items()}
    before, after = sums(judged(said, truth)), sums(judged(said, more))
    for figure in ("chair_s", "chair_i"):
        assert after[figure][0] <= before[figure][0]
        assert after[figure][1] == before[figure][1]
    assert after["recall"][0] >= before["recall"][0]


@laws
@given(captions, truths)
def test_images_with_all_objects_have_no_hallucination_and_none_all(said: list[Caption], truth: dict) -> None:
    full, empty = (judged(said, dict.fromkeys(truth, known)) for known in (OBJECTS, ()))
    assert full.chair_s == 0
    assert full.chair_i in (0, None)
    assert empty.chair_i in (1, None)
    assert sums(empty)["chair_s"][0] == len(said) - sums(empty)["no_object"][0]
