from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepsight.errors import InputError
from keepsight.eval.pope.answer_parsers import (
    PARSERS,
    UnknownParser,
    beaf,
    decide,
    lmms_eval,
    mme,
    official,
    opera,
    strict,
    vcd,
    vlmevalkit,
)

TEXT = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            "yes",
            "no",
            "No",
            "not",
            "isn't",
            "dog",
            ".",
            ",",
            "!",
            "**",
            "\n",
            "answer",
            "is",
            "there",
            "🐶",
            "１",
        ]
    ),
    max_size=8,
).map(" ".join)


@pytest.mark.parametrize(
    "answer",
    [
        "yes", "Yes", "YES", "yEs", "Yes.", "Yes!", " yes\n", "**Yes**", "`yes`", "(yes)", "'yes'", "‘Yes’", "<yes>",
        "Yes,", "ＹＥＳ", "Yes，有一只狗", "Yes, there is a dog.", "Yes there is", "Yes, it is known as a dog",
        "Yes, there's a dog and it isn't small.", "The answer is yes.", "Answer: yes", "Answer: **Yes**, on the left",
        "the answer is yes, as it barks", "I would say yes", "1. Yes", "Yes - a dog", "Yes—a dog", "Yes</s>",
    ],
)  # fmt: skip
def test_strict_reads_yes(answer: str) -> None:
    assert strict(answer) == "yes"


@pytest.mark.parametrize(
    "answer",
    [
        "no", "No", "NO", "nO", "No.", "No!", "No;", '"No"', "'no'", "(no)", "**No**", "_No_", " no ", "No，", "ＮＯ",
        "No, there isn't.", "No, there is no dog in the image.", "No dog", "The answer is no.", "The answer is: No",
        "I'd say no.", "There is no dog.", "There's no dog", "There’s no dog",
        "There are no skis in the image. The slope is empty.", "I see no dog", "I can see no dog here",
        "In the image, there is no dog.", "In this photo I see no dog", "The image shows no dog",
        "This photo contains no dogs at all", "No, one can see that there is none",
    ],
)  # fmt: skip
def test_strict_reads_no(answer: str) -> None:
    assert strict(answer) == "no"


@pytest.mark.parametrize(
    "answer",
    [
        # neither word
        "", " ", ".", "...", "Y", "y", "n", "yeah", "Nope", "true", "False", "unknown", "Not sure", "Absolutely",
        "Certainly not.", "There is a dog in the image.", "There isn't a dog.", "There aren't any dogs",
        "There are none.", "nothing", "a notebook", "another dog", "Now I see a dog", "yesterday", "yes-man", "no-one",
        "noes", "as an AI model I do not see images", "The eyes have it", "knows", "№ 5",
        # both words
        "Yes. No.", "yes no", "no yes", "Yes/No", "yes_no", "Yes,no", "Yes, there is no doubt", "No. Yes.",
        "No, but yes in a way",
        # one word, but no verdict
        "A dog with no collar", "Mr. Smith has no dog", "No doubt there is a dog", "No one is there", "No way to tell",
        "There is no way to tell", "I see no problem with this dog", "I am not sure. Yes", "I cannot say yes",
        "I can't say no", "he said yes to the dress",
    ],
)  # fmt: skip
def test_strict_does_not_guess(answer: str) -> None:
    assert strict(answer) is None


@given(TEXT)
def test_strict_reads_a_text_without_the_two_words_as_nothing(text: str) -> None:
    without = text.lower().replace("yes", "").replace("no", "")
    if "yes" not in without and "no" not in without:
        assert strict(without) is None


@given(TEXT, st.sampled_from(["{}!", "**{}**", "  {}\n", '"{}"', "{}.", "({})"]))
def test_case_markup_and_marks_around_do_not_matter_to_strict(text: str, around: str) -> None:
    assert strict(around.format(text)) == strict(text)
    if text.isascii():
        assert strict(text.swapcase()) == strict(text)


@given(TEXT)
def test_strict_and_the_careful_rules_never_contradict(text: str) -> None:
    found = {rule(text) for rule in (strict, lmms_eval)} - {None}
    assert len(found) <= 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    # answer: official, opera, vcd if the label is yes, vcd if it is no, lmms_eval, vlmevalkit, mme
    [
        ("NO", ("yes", "no", "no", "no", "no", "no", "no")),
        ("No!", ("yes", "yes", "no", "no", None, "no", "no")),
        ("There isn't a dog.", ("yes", "no", "no", "yes", None, None, None)),
        ("There are none.", ("yes", "yes", "no", "no", None, None, None)),
        ("I am not sure. Yes", ("no", "no", "yes", "no", None, "yes", None)),
        ("Yes. No.", ("yes", "no", "yes", "no", None, None, "yes")),
        ("", ("yes", "yes", "no", "yes", None, None, None)),
        ("Yes, it is known as a dog", ("yes", "yes", "yes", "no", None, "yes", "yes")),
        ("**No**", ("yes", "yes", "no", "no", None, None, "no")),
        ("Mr. Smith has no dog", ("yes", "no", "no", "no", None, "no", None)),
    ],
)
def test_published_rules_on_the_answers_they_disagree_about(
    answer: str, expected: tuple[str | None, ...]
) -> None:
    found = (
        official(answer),
        opera(answer),
        vcd(answer, "yes"),
        vcd(answer, "no"),
        lmms_eval(answer),
        vlmevalkit(answer),
        mme(answer),
    )
    assert found == expected


def test_vlmevalkit_removes_or_parts_at_marks_as_the_vqa_metric_does() -> None:
    assert vlmevalkit("no/yes") is None  # a space in the slash's place
    assert vlmevalkit("no,dog") == "no"
    assert vlmevalkit("no,dog, really") is None  # a comma before a space: all commas vanish, "nodog"
    assert vlmevalkit("no-1,000") is None  # a number with a comma: all marks vanish, "no1000"
    assert vlmevalkit("." * 32 + "yes") == "yes"
    assert vlmevalkit("." * 33 + "yes") is None  # the 33rd full stop stays


def test_beaf_repeats_its_last_decision() -> None:
    assert beaf("a dog") is None
    assert beaf("a dog", "no") == "no"
    assert decide(["a dog", "No.", "a dog", "yes", "?"], ["yes"] * 5, "beaf") == [
        None,
        "no",
        "no",
        "yes",
        "yes",
    ]


def test_vcd_sees_the_label_and_takes_both_sides() -> None:
    assert decide(["yes or no"] * 2, ["yes", "no"], "vcd") == ["yes", "no"]
    assert decide(["maybe"] * 2, ["yes", "no"], "vcd") == ["no", "yes"]


@given(st.lists(TEXT, max_size=5), st.sampled_from(sorted(PARSERS)))
def test_every_rule_decides_every_answer_and_on_it_alone(answers: list[str], name: str) -> None:
    labels = ["yes"] * len(answers)
    found = decide(answers, labels, name)
    assert len(found) == len(answers)
    assert set(found) <= {"yes", "no", None}
    if name != "beaf":
        assert found == [decide([answer], ["yes"], name)[0] for answer in answers]


def test_rules_are_named_and_strict_comes_first() -> None:
    assert next(iter(PARSERS)) == "strict"
    assert {name: parser.name for name, parser in PARSERS.items()} == {name: name for name in PARSERS}
    with pytest.raises(UnknownParser, match="did you mean 'official'"):
        decide([], [], "oficial")
    with pytest.raises(InputError, match="one label per answer"):
        decide(["yes"], [])


def test_a_huge_answer_is_read_like_any_other() -> None:
    huge = "there is no dog " + "here at all" * 200_000
    assert strict(huge) == "no"
    assert official(huge) == "no"
    assert vlmevalkit(huge) == "no"


DOCS = Path(__file__).parents[3] / "docs" / "pope.md"


def test_the_table_in_the_docs_is_what_the_rules_say() -> None:
    table = DOCS.read_text(encoding="utf-8").split("<!-- tested -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert len(rows) > 10
    for answer, *expected in rows:
        text = answer.strip("`")
        found = [strict(text), official(text), opera(text), vcd(text, "yes"), vcd(text, "no")]
        found += [lmms_eval(text), vlmevalkit(text), mme(text)]
        assert [decision or "–" for decision in found] == expected, text


def test_the_docs_name_every_rule_and_its_users() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for parser in PARSERS.values():
        assert f"| `{parser.name}` | {parser.users}" in text
