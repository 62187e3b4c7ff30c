"""BEAF: worked numbers, laws, what an unreadable or failed answer does, and files that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import fuzz
from parity import beaf as parity

from keepsight.errors import KeepsightError
from keepsight.eval.beaf.files import MissingOriginal, Question, match, read_questions
from keepsight.eval.beaf.score import CHANGES, METRICS, BeafReport, harmonic, score
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile, UnmatchedAnswers
from keepsight.eval.pope.answer_parsers import UnknownParser
from keepsight.eval.pope.files import read_answers

# A dog and a sofa that are taken out in turn, and a cat that never was there: (picture, object, label, edited, removed_q)
ROWS = [
    ("a.jpg", "dog", "yes", False, True),
    ("a.jpg", "sofa", "yes", False, True),
    ("a.jpg", "cat", "no", False, False),
    ("a_00.png", "dog", "no", True, True),
    ("a_00.png", "sofa", "yes", True, True),
    ("a_00.png", "cat", "no", True, False),
    ("a_01.jpg", "dog", "yes", True, True),
    ("a_01.jpg", "sofa", "no", True, True),
    ("a_01.jpg", "cat", "no", True, False),
]
SAID = ["Yes.", "No.", "No.", "No.", "Yes.", "Yes.", "Yes.", "Yes.", "No."]
RIGHT = [row[2] for row in ROWS]


def entries(prefix: str = "", first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": first + number,
            "image": prefix + image,
            "question": f"Is there a {name} in the image?",
            "orig_img": not edited,
            "removed_q": removed,
            "gt": label,
        }
        for number, (image, name, label, edited, removed) in enumerate(ROWS)
    ]


def asked(several: int = 1) -> list[Question]:
    return [
        Question(
            id=entry["id"],
            image=entry["image"],
            original=f"{number}a",
            text=entry["question"],
            label=entry["gt"],
            edited=not entry["orig_img"],
            removable=entry["removed_q"],
            where="here",
        )
        for number in range(several)
        for entry in entries(str(number), number * len(ROWS))
    ]


def judge(said: list[str | None], parser: str = "strict", **options: int) -> BeafReport:
    questions = asked(len(said) // len(ROWS))
    answers = {one.id: text for one, text in zip(questions, said, strict=True)}
    return score(questions, answers, parser, **{"resamples": 0, **options})


def test_worked_by_hand() -> None:
    report = judge(list(SAID))
    expected = {
        "tu": 1 / 2,  # the dog: yes, no
        "ig": 1 / 2,  # the sofa: no, yes
        "sb_plus": 0,
        "sb_minus": 0,
        "unread": 0,
        "id": 1 / 2,  # the cat: no, and then yes and no
        "f1_tu_id": 1 / 2,
        "accuracy": 6 / 9,
        "precision": 3 / 5,
        "recall": 3 / 4,
        "f1": 2 / 3,
    }
    assert report.values == pytest.approx(expected)
    assert (report.n, report.images, report.originals) == (9, 3, 1)
    assert (report.removed_pairs, report.other_pairs) == (2, 2)


@pytest.mark.parametrize(
    ("before", "after", "figure"),
    [("Yes", "No", "tu"), ("No", "Yes", "ig"), ("Yes", "Yes", "sb_plus"), ("No", "No", "sb_minus")],
)
def test_the_four_classes(before: str, after: str, figure: str) -> None:
    said = [before, before, "no", after, "yes", "no", "yes", after, "no"]
    assert {name: judge(list(said)).values[name] for name in CHANGES} == {
        name: float(name == figure) for name in CHANGES
    }


def test_published_figures_fit_together() -> None:
    # GPT-4o's answers to all questions of version 0, scored by the official script
    assert harmonic(0.5964, 0.0233) == pytest.approx(0.7406, abs=5e-5)
    assert harmonic(0.0, 1.0) == 0
    assert harmonic(None, 0.5) is harmonic(0.5, None) is None


def test_an_unreadable_answer_is_wrong_and_its_removed_pair_in_no_class() -> None:
    said: list[str | None] = [*SAID]
    said[3] = said[5] = "Perhaps."
    report = judge(said)
    assert (report.values["tu"], report.values["unread"]) == (0, 1 / 2)
    assert report.values["accuracy"] == 5 / 9  # one right answer less, of as many
    assert report.counts.unparsed == 2
    assert report.values["id"] == 1 / 2  # right, then unreadable: a change as good as right, then wrong
    said[2] = "Perhaps."
    assert judge(said).values["id"] == 1 / 2  # both unreadable is none; unreadable, then right is one


def test_the_official_rule_repeats_the_answer_before_in_the_order_of_the_questions() -> None:
    said: list[str | None] = [*RIGHT]
    said[3] = "Perhaps."  # comes after a no
    assert judge(said, "official").values["tu"] == 1
    said[2] = "yes"
    assert judge(said, "official").values["sb_plus"] == 1 / 2
    assert judge(said, "official").parser == "beaf"
    assert judge(["Perhaps.", *RIGHT[1:]], "official").counts.unparsed == 1  # the script crashes


def test_a_failed_answer_is_not_an_empty_one() -> None:
    failed, empty = judge([None, *SAID[1:]]), judge(["", *SAID[1:]])
    assert (failed.n, failed.failed, failed.dropped_pairs, failed.removed_pairs) == (8, 1, 1, 1)
    assert (empty.n, empty.failed, empty.dropped_pairs, empty.removed_pairs) == (9, 0, 0, 2)
    assert failed.values["unread"] == 0 < empty.values["unread"]
    with pytest.raises(EmptyFile, match="could be scored"):
        judge([None] * 9)


def test_nothing_to_divide_by_is_none() -> None:
    questions = [one for one in asked() if not one.edited]
    report = score(questions, {one.id: "maybe" for one in questions}, resamples=20)
    assert report.values["tu"] is report.values["id"] is report.values["f1_tu_id"] is None
    assert report.ci["tu"] is report.ci["f1_tu_id"] is report.values["precision"] is None
    json.dumps(report.to_json(), allow_nan=False)


def test_intervals_draw_originals_with_their_edits() -> None:
    alike = judge(SAID * 4, resamples=200)
    for name in METRICS:
        low, high = alike.ci[name]
        assert low == pytest.approx(high) == pytest.approx(alike.values[name])
    mixed = judge([*SAID * 4, *RIGHT * 4], resamples=200, seed=3)
    low, high = mixed.ci["f1_tu_id"]
    assert 0.5 <= low < mixed.values["f1_tu_id"] < high <= 1
    assert mixed == judge([*SAID * 4, *RIGHT * 4], resamples=200, seed=3)


ANSWERS = st.lists(st.sampled_from(["Yes", "no.", "", "hm", None]), min_size=9, max_size=9)


@settings(deadline=None, derandomize=True)
@given(ANSWERS.filter(any), st.sampled_from(["strict", "official", "mme"]))
def test_laws(said: list[str | None], parser: str) -> None:
    report = judge(said, parser)
    kinds = [report.values[name] for name in CHANGES]
    assert (sum(kinds) == pytest.approx(1)) if report.removed_pairs else set(kinds) == {None}
    assert all(value is None or 0 <= value <= 1 for value in report.values.values())
    assert report.n + report.failed == 9
    assert report.removed_pairs + report.other_pairs + report.dropped_pairs == 4
    # The same model on more pictures of the same kind
    if parser != "official" or said[0] in ("Yes", "no."):
        more = judge(said * 3, parser)
        assert more.values == pytest.approx(report.values, nan_ok=True)
        assert more.originals == 3 * report.originals


@settings(deadline=None, derandomize=True)
@given(ANSWERS.filter(any), st.randoms(use_true_random=False))
def test_the_order_of_questions_is_nothing_to_the_strict_rule(said: list[str | None], draw: Any) -> None:
    questions = asked()
    answers = {one.id: text for one, text in zip(questions, said, strict=True)}
    draw.shuffle(questions)
    assert score(questions, answers, resamples=0).values == judge(said).values


def test_a_perfect_and_a_yes_only_model() -> None:
    perfect, keen = judge(list(RIGHT)), judge(["Yes"] * 9)
    assert all(perfect.values[name] == float(name not in (*CHANGES[1:], "id")) for name in METRICS)
    assert (keen.values["sb_plus"], keen.values["id"], keen.values["f1_tu_id"]) == (1, 0, 0)


def test_unknown_parser_and_answers_to_no_question() -> None:
    with pytest.raises(UnknownParser, match="did you mean 'strict'"):
        judge(list(SAID), "stricd")
    with pytest.raises(UnmatchedAnswers, match="no question 77"):
        score(asked(), {77: "yes"})


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(content: object, name: str = "qna.json") -> Path:
        path = tmp_path / name
        lines = isinstance(content, list) and name.endswith("l")
        path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
        return path

    return write


def test_reads_the_official_list_json_lines_and_a_runs_items(file: Callable[..., Path]) -> None:
    official = read_questions(file(entries()))
    lines = read_questions(file(entries(), "qna.jsonl"))
    run = [
        {
            "id": str(entry["id"]),
            "image_id": entry["image"].rpartition(".")[0],
            "question": entry["question"],
            "truth": {
                "label": entry["gt"],
                **{key: entry[key] for key in ("image", "orig_img", "removed_q")},
            },
        }
        for entry in entries()
    ]
    items = read_questions(file(run, "items.jsonl"))
    bare = [
        [(q.id, q.image, q.original, q.label, q.edited) for q in some] for some in (official, lines, items)
    ]
    assert bare[0] == bare[1] == bare[2]
    assert official[3].original == "a"
    answers = [
        {"id": str(number), "image_id": row[0].rpartition(".")[0], "prompt": entries()[number]["question"]}
        | ({"answer": None, "error": "out of memory"} if number == 8 else {"answer": "Yes", "error": None})
        for number, row in enumerate(ROWS)
    ]
    said = match(items, read_answers(file(answers, "answers.jsonl")))
    assert [said[number] for number in range(9)] == ["Yes"] * 8 + [None]


def changed(at: int, **values: object) -> list[dict[str, Any]]:
    rows = entries()
    rows[at] |= values
    return rows


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([], EmptyFile, "holds no question"),
        (changed(2, gt="maybe"), MalformedFile, r"entry 3: the right answer \('gt'\) must be yes or no"),
        (changed(2, gt=None), MalformedFile, "entry 3: the right answer"),
        (changed(1, orig_img=1), MalformedFile, "entry 2: 'orig_img' must be true or false, not 1"),
        (changed(1, id=0), DuplicateQuestion, "entry 2: question 0 stands in .*entry 1 already"),
        (changed(1, question=entries()[0]["question"]), DuplicateQuestion, "entry 2: .*stands in .*entry 1"),
        (changed(4, image="a.png"), MalformedFile, "entry 5: .*does not end in _ and two digits"),
        (changed(4, image="b_00.png"), MissingOriginal, "entry 5: .*its original, b, is not in the file"),
        (
            changed(4, question="Is there an elk?"),
            MissingOriginal,
            "entry 5: .*does not ask .*elk.* about its or",
        ),
        (changed(4, image=""), MalformedFile, "entry 5: 'image' must be a text that is not empty"),
        (changed(4, id=1.5), MalformedFile, "entry 5: 'id' is a whole number or a text"),
        ([{"id": 1, "image": "a.jpg"}], MalformedFile, "entry 1: the key 'gt' is missing"),
    ],
)
def test_questions_are_refused_by_place(
    file: Callable[..., Path], content: object, error: type[KeepsightError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_questions(file(content))


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([{"id": 77, "answer": "no"}], UnmatchedAnswers, "entry 1: there is no question 77"),
        ([{"id": 1, "answer": "no"}], UnmatchedAnswers, "8 of 9 questions have no answer, first 0"),
        (
            [{"id": 1, "answer": "no", "image": "b.jpg"}],
            UnmatchedAnswers,
            "entry 1: answers about image 'b.jpg'",
        ),
        (
            [{"id": 1, "answer": "no", "question": "An elk?"}],
            UnmatchedAnswers,
            r'entry 1: answers "An elk\?"',
        ),
        ([{"answer": "no", "question": "An elk?"}], MalformedFile, "entry 1: the key 'id' is missing"),
        ([{"id": 1, "answer": "no"}] * 2, DuplicateQuestion, "entry 2: question 1 was answered before"),
    ],
)
def test_answers_are_refused_by_place(
    file: Callable[..., Path], answers: object, error: type[KeepsightError], message: str
) -> None:
    with pytest.raises(error, match=message):
        match(asked(), read_answers(file(answers)), source="said.json")


def test_partial_scores_what_was_answered(file: Callable[..., Path]) -> None:
    questions = read_questions(file(entries()))
    said = match(questions, read_answers(file([{"id": 0, "answer": "yes"}], "a.json")), partial=True)
    report = score(questions, said, resamples=0)
    assert (report.n, report.missing, report.dropped_pairs) == (1, 8, 4)


def test_readers_never_fall_over(tmp_path: Path) -> None:
    as_list = json.dumps(entries()).encode()
    as_lines = "\n".join(map(json.dumps, entries())).encode()
    said = json.dumps([{"id": number, "answer": text} for number, text in enumerate(SAID)]).encode()

    def whole(path: Path) -> None:
        score(asked(), match(asked(), read_answers(path), partial=True), "official", resamples=0)

    def read(path: Path) -> None:
        questions = read_questions(path)
        score(questions, {one.id: "no" for one in questions}, resamples=0)

    for way, originals in ((read, [as_list, as_lines]), (whole, [said])):
        outcome = fuzz(way, originals, tmp_path / "file.json", times=700, seed=4)
        assert min(outcome) > 20


def test_equals_the_official_script(shared: Path) -> None:
    rows = list(parity.differences(shared))
    assert [row.differing for row in rows] == [0, 0]
    assert [row.compared for row in rows] == [13, 13]
