from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import fuzz

from keepsight.errors import InputError
from keepsight.eval.errors import AmbiguousKeys, DuplicateQuestion, EmptyFile, MalformedFile, UnmatchedAnswers
from keepsight.eval.pope.files import Question, Said, read_answers, read_questions, split_names
from keepsight.eval.pope.pairing import join, match_files, shared_questions

Write = Callable[..., Path]

Q1 = {
    "question_id": 1,
    "image": "COCO_val2014_000000000042.jpg",
    "text": "Is there a dog in the image?",
    "label": "yes",
}
Q2 = {
    "question_id": 2,
    "image": "COCO_val2014_000000000042.jpg",
    "text": "Is there an apple in the imange?",
    "label": "no",
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(name: str, *entries: object) -> Path:
        path = tmp_path / name
        path.write_text(
            "\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries),
            encoding="utf-8",
        )
        return path

    return lines


def test_pope_files_are_read_and_say_their_split(write: Write) -> None:
    found = read_questions(write("coco_pope_popular.json", Q1, "", Q2))
    assert [(q.question_id, q.image, q.label, q.split) for q in found] == [
        (1, 42, "yes", "popular"),
        (2, 42, "no", "popular"),
    ]
    assert found[1].where.endswith("coco_pope_popular.json:3")


def test_other_forms_of_questions_are_read(write: Write) -> None:
    listed = {
        "question_id": "7",
        "image": "a.jpg",
        "question": "A cat?",
        "label": " Yes",
        "category": "adversarial",
    }
    (one,) = read_questions(write("q.json", json.dumps([listed], indent=1)))
    assert (one.question_id, one.image, one.text, one.label, one.split) == (
        7,
        "a.jpg",
        "A cat?",
        "yes",
        "adversarial",
    )
    item = {
        "id": "random/7",
        "image_id": 9,
        "question": "A cat?",
        "truth": {"label": "no", "split": "random"},
    }
    (one,) = read_questions(write("items.jsonl", item))
    assert (one.question_id, one.image, one.label, one.split) == ("random/7", 9, "no", "random")
    assert read_questions(write("mine.jsonl", Q1))[0].split == "mine"
    assert read_questions(write("mine.jsonl", Q1), "given")[0].split == "given"


def test_splits_get_names_that_differ() -> None:
    def names(*paths: str) -> list[str]:
        return split_names([Path(path) for path in paths])

    assert names("coco_pope_random.json", "coco_pope_popular.json") == ["random", "popular"]
    assert names("coco_pope_random.json", "gqa_pope_random.json") == ["coco_pope_random", "gqa_pope_random"]
    assert names("a/q.json", "b/q.json") == ["a/q.json", "b/q.json"]
    assert names("random_popular.json") == ["random_popular"]


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([], EmptyFile, "holds no question"),
        (["[]"], EmptyFile, "holds no question"),
        ([Q1, "{"], MalformedFile, ":2: is not JSON"),
        ([3], MalformedFile, ":1: an object"),
        ([{**Q1, "label": "maybe"}], MalformedFile, "'label' must be yes or no, not \"maybe\""),
        ([{**Q1, "label": True}], MalformedFile, "not true"),
        (['{"question_id": 1, "image": "a", "text": "t", "label": NaN}'], MalformedFile, "not NaN"),
        ([{**Q1, "question_id": 1.5}], MalformedFile, "'question_id' must be a text, not 1.5"),
        ([{**Q1, "question_id": True}], MalformedFile, "'question_id'"),
        ([{**Q1, "question_id": " "}], MalformedFile, "'question_id' is empty"),
        ([{**Q1, "image": None}], MalformedFile, "an image id"),
        ([{**Q1, "image": "\ud800"}], MalformedFile, "half a character"),
        ([{**Q1, "text": 5}], MalformedFile, "'text' must be a text"),
        (
            [{key: Q1[key] for key in ("question_id", "image", "text")}],
            MalformedFile,
            "the key 'label' is missing",
        ),
        ([Q1, {**Q2, "question_id": "1"}], DuplicateQuestion, r":2: question 1 stands in .*:1 already"),
    ],
)
def test_bad_questions_are_named(write: Write, lines: list, error: type[InputError], words: str) -> None:
    path = write("q.json", *lines)
    with pytest.raises(error, match=words) as caught:
        read_questions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {
            "question_id": 1,
            "text": "Yes",
            "prompt": "Is there a dog in the image?\nAnswer in a word.",
            "model_id": "llava",
        },
        {"question_id": "1", "answer": "Yes", "image": "COCO_val2014_000000000042.jpg"},
        {
            "question_id": 1,
            "question": "Is there a dog in the image?",
            "answer": "Yes",
            "label": "yes",
            "image": 42,
        },
        {"id": 1, "image_id": 42, "answer": "Yes", "error": None, "method": "greedy"},
        {"id": "x/1", "answer": "Yes", "prompt": "Do you see a DOG?"},
        {"question": "Is there a dog in the image?", "answer": "Yes"},
    ],
)
def test_answers_of_every_writer_find_their_question(write: Write, entry: dict) -> None:
    questions = read_questions(write("x.json", Q1))
    joined = join(questions, read_answers(write("a.jsonl", entry)))
    (reply,) = joined.replies["x"]
    assert (reply.question_id, reply.image, reply.label, reply.answer) == (1, 42, "yes", "Yes")


def test_failures_are_counted_and_not_scored(write: Write) -> None:
    questions = read_questions(write("x.json", Q1, Q2))
    failed = {"id": 2, "answer": None, "error": "out of memory"}
    joined = join(questions, read_answers(write("a.jsonl", {"id": 1, "answer": ""}, failed)))
    assert [reply.answer for reply in joined.replies["x"]] == [""]
    assert joined.failed == {"x": 1}
    again = read_answers(write("a.jsonl", failed, failed, {"id": 2, "answer": "No", "error": None}, failed))
    assert [(said.question_id, said.answer) for said in again] == [(2, "No")]


def test_one_method_can_be_chosen(write: Write) -> None:
    path = write("a.jsonl", *({"id": 1, "answer": name, "method": name} for name in ("greedy", "vcd")))
    assert [said.answer for said in read_answers(path, method="vcd")] == ["vcd"]
    with pytest.raises(DuplicateQuestion, match="'greedy', 'vcd'"):
        read_answers(path)
    with pytest.raises(EmptyFile, match="method 'pai'"):
        read_answers(path, method="pai")


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([], EmptyFile, "holds no answer"),
        (["null"], MalformedFile, "expected, not null"),
        ([Q1], MalformedFile, "give it with --questions"),
        ([{"question_id": 1}], MalformedFile, "the key 'answer' is missing"),
        ([{"question_id": 1, "answer": None}], MalformedFile, "'answer' must be a text, not null"),
        ([{"question_id": 1, "answer": ["yes"]}], MalformedFile, "'answer' must be a text"),
        (['{"question_id": NaN, "answer": "yes"}'], MalformedFile, "'question_id' must be a text, not NaN"),
        ([{"question_id": 1, "answer": "yes", "image": []}], MalformedFile, "an image id"),
        ([{"question_id": 1, "answer": "\udc00"}], MalformedFile, "half a character"),
        ([{"question_id": 1, "answer": "a"}, {"question_id": 1, "answer": "b"}], DuplicateQuestion, ":2: .*answered before"),
        ([{"question_id": 1, "answer": "a"}, {"question_id": 2, "text": "b"}], AmbiguousKeys, "'answer' and 'text'"),
    ],
)  # fmt: skip
def test_bad_answers_are_named(write: Write, lines: list, error: type[InputError], words: str) -> None:
    path = write("a.jsonl", *lines)
    with pytest.raises(error, match=words) as caught:
        read_answers(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "error", "words"),
    [
        ([{"question_id": 1, "answer": "a"}], UnmatchedAnswers, r"1 of 2 questions have no answer, first 2 of .*x.json:2"),
        ([{"question_id": 3, "answer": "a"}], UnmatchedAnswers, "there is no question 3"),
        ([{"question_id": 1, "answer": "a", "image": 43}], UnmatchedAnswers, "about image 43"),
        ([{"question_id": 1, "answer": "a", "question": "Is there a cat in the image?"}], UnmatchedAnswers, "another split"),
        ([{"question_id": 1, "answer": "a", "prompt": "Do you see a cat?"}], UnmatchedAnswers, "another split"),
        ([{"question_id": 1, "answer": "a"}, {"answer": "b"}], MalformedFile, "every answer needs a 'question_id'"),
        ([{"answer": "a"}, {"answer": "b"}], MalformedFile, "repeats its 'question'"),
        ([{"answer": "a", "question": Q1["text"]}], UnmatchedAnswers, "1 answers without question_id"),
        ([{"answer": "a", "question": Q["text"]} for Q in (Q2, Q1)], UnmatchedAnswers, "another split"),
        ([{"question_id": 1, "answer": "a"}, {"id": "x/1", "answer": "b"}], DuplicateQuestion, "answered before"),
    ],
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(
    write: Write, lines: list, error: type[InputError], words: str
) -> None:
    questions = read_questions(write("x.json", Q1, Q2))
    with pytest.raises(error, match=words):
        join(questions, read_answers(write("a.jsonl", *lines)))


def test_files_are_paired_in_order_or_one_answers_all(write: Write) -> None:
    questions = [write("p_random.json", Q1), write("p_popular.json", Q2)]
    apart = [
        write("a.jsonl", {"question_id": 1, "text": "yes"}),
        write("b.jsonl", {"question_id": 2, "text": "no"}),
    ]
    together = write("c.jsonl", {"question_id": 1, "text": "yes"}, {"question_id": 2, "text": "no"})
    named = write("d.jsonl", {"id": "popular/2", "answer": "no"}, {"id": "random/1", "answer": "yes"})
    found = [match_files(answers, questions).replies for answers in (apart, [together], [named])]
    assert found[0] == found[1] == found[2]
    assert {split: len(group) for split, group in found[0].items()} == {"random": 1, "popular": 1}
    with pytest.raises(UnmatchedAnswers, match="3 files of answers and 2 of questions"):
        match_files([*apart, together], questions)


def test_answers_may_hold_their_own_questions(write: Write) -> None:
    whole = {"question_id": 1, "image": "a.jpg", "question": "A dog?", "label": "yes"}
    for key in ("answer", "text"):
        joined = match_files([write("x_random.jsonl", {**whole, key: "No"})])
        (reply,) = joined.replies["random"]
        assert (reply.label, reply.answer) == ("yes", "No")
    with pytest.raises(
        MalformedFile, match=r"'label' is missing .*; where .* give the questions with --questions"
    ):
        match_files(
            [write("x.jsonl", {"question_id": 1, "image": "a", "question": "A dog?", "answer": "No"})]
        )


def test_ids_that_stand_in_two_files_are_not_guessed(write: Write) -> None:
    questions = [write("p_random.json", Q1), write("p_popular.json", Q1)]
    with pytest.raises(
        UnmatchedAnswers, match=r"question 1 stands in .*p_random.json:1 and in .*p_popular.json:1"
    ):
        match_files([write("a.jsonl", {"question_id": 1, "text": "yes"})], questions)
    same = [write(f"{name}.json", {**Q1, "category": "random"}) for name in "ab"]
    answers = [write(f"{name}.jsonl", {"question_id": 1, "text": "yes"}) for name in "cd"]
    with pytest.raises(DuplicateQuestion, match="the split 'random'"):
        match_files(answers, same)


def test_partial_answers_are_scored_only_if_asked_for(write: Write) -> None:
    questions = [write("p_random.json", Q1, Q2), write("p_popular.json", {**Q1, "question_id": 9})]
    answers = [write("a.jsonl", {"question_id": 1, "text": "yes"})]
    with pytest.raises(UnmatchedAnswers, match="2 of 3 questions have no answer"):
        match_files(answers, questions)
    joined = match_files(answers, questions, partial=True)
    assert {split: len(group) for split, group in joined.replies.items()} == {"random": 1}
    assert joined.missing == {"random": 1, "popular": 1}
    failed = [write("f.jsonl", {"id": 1, "answer": None, "error": "lost"})]
    with pytest.raises(EmptyFile, match="all 1 answers to 'random' failed"):
        match_files(failed, [write("p_random.json", Q1)])


def test_two_sides_keep_what_both_answered(write: Write) -> None:
    questions = [write("x.json", Q1, Q2)]
    both = match_files([write("a.jsonl", {"id": 1, "answer": "a"}, {"id": 2, "answer": "b"})], questions)
    one = match_files([write("b.jsonl", {"id": 2, "answer": "c"})], questions, partial=True)
    first, second = shared_questions(both, one)
    assert [[reply.answer for reply in side.replies["x"]] for side in (first, second)] == [["b"], ["c"]]
    other = match_files([write("b.jsonl", {"id": 1, "answer": "c"})], questions, partial=True)
    with pytest.raises(UnmatchedAnswers, match="on both sides"):
        shared_questions(one, other)


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_the_order_of_answers_does_not_matter_and_every_question_has_one_fate(
    order: list[int], failed: set[int]
) -> None:
    questions = [
        Question(question_id=at, image=at, text="t", label="yes", split="ab"[at % 2], where=f"q:{at}")
        for at in range(6)
    ]
    answers = [
        Said(
            question_id=at,
            answer=None if at in failed else str(at),
            asked=None,
            image=None,
            method=None,
            where=f"a:{at}",
        )
        for at in order
    ]
    joined = join(questions, answers[1:], partial=True)
    assert joined == join(questions, answers[:0:-1], partial=True)
    fates = [
        sum(map(len, joined.replies.values())),
        sum(joined.failed.values()),
        sum(joined.missing.values()),
    ]
    assert sum(fates) == 6
    assert fates[2] == 1
    assert all(reply.answer == str(reply.question_id) for group in joined.replies.values() for reply in group)


def test_broken_files_are_refused_by_name(write: Write, tmp_path: Path) -> None:
    questions = write("x.json", Q1, Q2)
    asked = read_questions(questions)
    outcome = fuzz(read_questions, [questions.read_bytes()], tmp_path / "q.json", times=400, seed=2)
    assert min(outcome) > 40
    answers = [
        b'{"question_id": 1, "text": "Yes", "prompt": "Is there a dog in the image?"}\n{"question_id": 2, "text": "No"}',
        b'{"id": "x/1", "image_id": 42, "answer": "Yes", "error": null}\n{"id": 2, "answer": null, "error": "x"}',
        b'[{"question": "Is there a dog in the image?", "answer": "Yes"}]',
    ]
    outcome = fuzz(
        lambda path: join(asked, read_answers(path), partial=True),
        answers,
        tmp_path / "a.json",
        times=500,
        seed=3,
    )
    assert min(outcome) > 40
