"""Answers as LLaVA, VLMEvalKit, lmms-eval, PAI and PAINT write them, matched to POPE's questions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from keepsight.eval.errors import AmbiguousKeys, DuplicateQuestion, MalformedFile, UnmatchedAnswers
from keepsight.eval.pope.files import read_answer_file, read_answers
from keepsight.eval.pope.pairing import Joined, match_files

Write = Callable[..., Path]

# Three files as POPE's: the same pictures and present objects, other absent ones, and ids from 1 in each.
ABSENT = {"random": ("car", "kite"), "popular": ("chair", "bus"), "adversarial": ("chair", "bench")}
ASKED = {
    split: [
        (1, "COCO_val2014_000000000001.jpg", "dog", "yes"),
        (2, "COCO_val2014_000000000001.jpg", first, "no"),
        (3, "COCO_val2014_000000000002.jpg", "cat", "yes"),
        (4, "COCO_val2014_000000000002.jpg", second, "no"),
    ]
    for split, (first, second) in ABSENT.items()
}


def text(name: str) -> str:
    return f"Is there a {name} in the image?"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(name: str, *entries: object) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
        return path

    return lines


@pytest.fixture
def questions(write: Write) -> list[Path]:
    return [
        write(
            f"coco_pope_{split}.json",
            *(
                {"question_id": number, "image": image, "text": text(name), "label": label}
                for number, image, name, label in asked
            ),
        )
        for split, asked in ASKED.items()
    ]


def said_by(joined: Joined) -> dict[str, list[str]]:
    return {split: [reply.answer for reply in group] for split, group in joined.replies.items()}


def marked(split: str, number: int) -> str:
    """An answer that says which question it is to."""
    return f"Yes, {split} {number}"


EVERY = {split: [marked(split, number) for number in range(1, 5)] for split in ASKED}


def llava(order: Sequence[str], **changes: Any) -> list[dict]:
    """One file for all splits, whose ids run through them in an order of the splits."""
    asked = [(split, *one) for split in order for one in ASKED[split]]
    return [
        {
            "question_id": at,
            "prompt": f"{text(name)}\nAnswer the question using a single word or phrase.",
            "text": marked(split, number),
            "answer_id": "x",
            "model_id": "llava",
            "metadata": {},
        }
        | changes
        for at, (split, number, _, name, _) in enumerate(asked)
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(ASKED)))
def test_one_file_for_three_splits_is_split_by_its_questions(
    write: Write, questions: list[Path], order: tuple[str, ...]
) -> None:
    joined = match_files([write("merged.jsonl", *llava(order))], questions)
    assert said_by(joined) == EVERY
    assert (joined.matched, joined.files[0].shape.answer) == ("order", "text")
    # The order of the lines does not matter, since the ids tell it.
    shuffled = match_files([write("shuffled.jsonl", *reversed(llava(order)))], questions)
    assert said_by(shuffled) == EVERY


def test_one_file_for_three_splits_is_not_guessed(write: Write, questions: list[Path]) -> None:
    lines = llava(list(ASKED))
    short = write("short.jsonl", *lines[:-1])
    with pytest.raises(UnmatchedAnswers, match=r"has to answer all 12, .* holds 11 answers"):
        match_files([short], questions)
    with pytest.raises(UnmatchedAnswers, match="has to answer all 12"):
        match_files([short], questions, partial=True)
    without = [{key: line[key] for key in ("question_id", "text")} for line in lines]
    with pytest.raises(MalformedFile, match="each repeats its 'question'"):
        match_files([write("bare.jsonl", *without)], questions)
    wrong = [line | ({"prompt": text("zebra")} if line["question_id"] == 7 else {}) for line in lines]
    with pytest.raises(UnmatchedAnswers, match=r"fit these files in no order: .*zebra"):
        match_files([write("wrong.jsonl", *wrong)], questions)
    twins = [
        questions[0],
        write("coco_pope_popular.json", *map(json.loads, questions[0].read_text().split("\n"))),
    ]
    same = llava(["random", "random"])
    with pytest.raises(UnmatchedAnswers, match="fit the files of questions in 2 orders"):
        match_files([write("twins.jsonl", *same)], twins)


def paint(split: str) -> list[dict]:
    """PAI's and PAINT's lines: labels as numbers, and a chat in which earlier questions stand."""
    asked = ASKED[split]
    return [
        {
            "query": text(name),
            "label": int(label == "yes"),
            "ans": marked(split, number),
            "question": "USER: " + " ".join(text(one[2]) for one in asked[:number]) + " ASSISTANT:",
            "file_path": "x",
        }
        for number, _, name, label in asked
    ]


def test_answers_without_ids_are_matched_by_order_and_checked(write: Write, questions: list[Path]) -> None:
    whole = write("paint.jsonl", *paint("random"))
    joined = match_files([whole], questions[:1])
    assert said_by(joined) == {"random": EVERY["random"]}
    assert (joined.matched, joined.files[0].shape.question) == ("order", "query")
    first = write("first.jsonl", *paint("random")[:3])
    with pytest.raises(
        UnmatchedAnswers, match=r"3 answers without question_id .* 4 questions in order.*--partial"
    ):
        match_files([first], questions[:1])
    part = match_files([first], questions[:1], partial=True)
    assert (said_by(part), part.missing) == ({"random": EVERY["random"][:3]}, {"random": 1})
    later = write("later.jsonl", *paint("random")[1:])
    with pytest.raises(UnmatchedAnswers, match="another split"):
        match_files([later], questions[:1], partial=True)
    with pytest.raises(UnmatchedAnswers, match="another split"):
        match_files([whole], questions[1:2])


def test_labels_as_numbers_are_read_without_questions(write: Write) -> None:
    joined = match_files([write("x_random.jsonl", *paint("random"))])
    assert [reply.label for reply in joined.replies["random"]] == ["yes", "no", "yes", "no"]
    assert (joined.matched, joined.pictures_known) == ("own", False)
    assert len({reply.image for reply in joined.replies["random"]}) == 4
    with pytest.raises(MalformedFile, match=r"x.jsonl:1: the key 'label' is missing or no yes or no"):
        match_files([write("x.jsonl", *(line | {"label": 2} for line in paint("random")))])


def kit(*, image: bool = True) -> list[dict]:
    """VLMEvalKit's rows: a question once for all splits that ask it, and the label under "answer"."""
    rows: dict[tuple[str, str], dict] = {}
    for split, asked in ASKED.items():
        for _, picture, name, label in asked:
            row = rows.setdefault((picture, name), {
                "index": 100 + len(rows), "question": text(name), "answer": label.title(), "category": "",
                "prediction": f"{name} {picture[-5]}",
            })  # fmt: skip
            row["category"] += f"{',' if row['category'] else ''}{split}"
            if image:
                row["image_id"] = picture
    return list(rows.values())


def test_vlmevalkits_answers_are_its_predictions(write: Write, questions: list[Path]) -> None:
    wanted = {
        split: [f"{name} {picture[-5]}" for _, picture, name, _ in asked] for split, asked in ASKED.items()
    }
    path = write("kit.json", kit())
    matched = match_files([path], questions)
    own = match_files([path])
    assert said_by(matched) == wanted
    # Without files of questions the order is that of the rows.
    assert {split: sorted(said) for split, said in said_by(own).items()} == {
        split: sorted(said) for split, said in wanted.items()
    }
    assert (matched.matched, own.matched, own.pictures_known) == ("picture", "own", True)
    assert {reply.answer: reply.label for reply in own.replies["popular"]} == {
        "dog 1": "yes",
        "chair 1": "no",
        "cat 2": "yes",
        "bus 2": "no",
    }
    assert own.replies["random"][0].image == matched.replies["random"][0].image == 1
    with pytest.raises(UnmatchedAnswers, match=r"there is no question .* about image 1"):
        match_files([path], questions[:1])


def test_vlmevalkit_without_pictures_is_scored_by_its_own_labels_alone(
    write: Write, questions: list[Path]
) -> None:
    path = write("kit.json", kit(image=False))
    own = match_files([path])
    assert not own.pictures_known
    # A question that stands in two splits counts as the same picture in both.
    assert own.replies["random"][0].image == own.replies["popular"][0].image
    with pytest.raises(MalformedFile, match="index is not the id of POPE's question"):
        match_files([path], questions)
    renamed = write("named.json", [row | {"img": row.pop("image_id")} for row in kit()])
    assert said_by(match_files([renamed], questions, image_key="img")).keys() == ASKED.keys()
    with pytest.raises(MalformedFile, match=r"no entry has the key 'imgs' \(--image-key\); keys: \"index\""):
        match_files([renamed], questions, image_key="imgs")
    twice = write("twice.json", [*kit(), kit()[0] | {"index": 999}])
    with pytest.raises(DuplicateQuestion, match="was answered before"):
        match_files([twice], questions)


def test_what_harnesses_write_for_no_answer_is_a_failure(write: Write, questions: list[Path]) -> None:
    rows = kit()
    rows[0]["prediction"] = "Failed to obtain answer via API."
    joined = match_files([write("kit.json", rows)], questions)
    assert joined.failed == {"random": 1, "popular": 1, "adversarial": 1}
    lines = lmms(["random"])
    lines[1]["filtered_resps"] = ["[LMMS_EVAL_REQUEST_FAILED after 5 retries]"]
    assert match_files([write("l.jsonl", *lines)], questions[:1]).failed == {"random": 1}
    # In a form of another writer it is an answer like any other.
    plain = write(
        "a.jsonl", *({"question_id": at, "answer": "Failed to obtain answer"} for at in range(1, 5))
    )
    assert match_files([plain], questions[:1]).failed == {"random": 0}


def lmms(order: Sequence[str], *, metrics: bool = True) -> list[dict]:
    asked = [(split, *one) for split in order for one in ASKED[split]]
    return [
        {
            "doc_id": at,
            "target": label,
            "input": f"{text(name)}\nAnswer the question using a single word or phrase.",
            "resps": [[marked(split, number)]],
            "filtered_resps": [marked(split, number)],
            "doc_hash": "x",
        }
        | ({"pope_accuracy": {"question_id": str(number), "prediction": "yes"}} if metrics else {})
        for at, (split, number, _, name, label) in enumerate(asked)
    ]


def test_lmms_evals_samples_are_matched_by_the_ids_of_its_metrics_or_by_order(
    write: Write, questions: list[Path]
) -> None:
    one = match_files([write("one.jsonl", *reversed(lmms(["random"])))], questions[:1])
    assert (said_by(one), one.matched) == ({"random": EVERY["random"]}, "id")
    # Its ids are those of the data set's rows, from 0, so that they are never taken for POPE's ids.
    plain = match_files([write("plain.jsonl", *reversed(lmms(["random"], metrics=False)))], questions[:1])
    assert (said_by(plain), plain.matched) == ({"random": EVERY["random"]}, "order")
    three = match_files([write("all.jsonl", *lmms(["adversarial", "popular", "random"]))], questions)
    assert (said_by(three), three.matched) == (EVERY, "order")
    own = match_files([write("x_random.jsonl", *lmms(["random"]))])
    assert [reply.label for reply in own.replies["random"]] == ["yes", "no", "yes", "no"]
    double = [*lmms(["random"], metrics=False), lmms(["random"], metrics=False)[0]]
    with pytest.raises(DuplicateQuestion, match="doc_id 0 was answered before"):
        read_answers(write("double.jsonl", *double))
    with pytest.raises(MalformedFile, match="'filtered_resps' must hold one answer, not 2"):
        read_answers(write("two.jsonl", lmms(["random"])[0] | {"filtered_resps": ["a", "b"]}))


def test_labels_are_never_scored_as_answers(write: Write, questions: list[Path]) -> None:
    dump = [
        {"question_id": number, "question": text(name), "answer": label, "response": marked("random", number)}
        for number, _, name, label in ASKED["random"]
    ]
    path = write("dump.jsonl", *dump)
    with pytest.raises(AmbiguousKeys, match=r"'answer' and 'response' could each .* --answer-key"):
        match_files([path], questions[:1])
    joined = match_files([path], questions[:1], answer_key="response")
    assert said_by(joined) == {"random": EVERY["random"]}
    short = write("short.jsonl", *({key: line[key] for key in ("question_id", "response")} for line in dump))
    assert said_by(match_files([short], questions[:1])) == {"random": EVERY["random"]}


def test_questions_are_never_scored_as_answers(write: Write, questions: list[Path]) -> None:
    with pytest.raises(MalformedFile, match="is a question with its label"):
        match_files(questions[:1], questions[:1])
    asked = [
        {
            "question_id": number,
            "image": image,
            "text": f"{text(name)}\nAnswer yes or no.",
            "category": "random",
        }
        for number, image, name, _ in ASKED["random"]
    ]
    with pytest.raises(UnmatchedAnswers, match="every answer is the question itself"):
        match_files([write("llava_pope_test.jsonl", *asked)], questions[:1])
    # A model that repeats the question before it answers has answered.
    spoken = [line | {"text": f"{line['text'].split(chr(10))[0]} Yes."} for line in asked]
    assert len(match_files([write("spoken.jsonl", *spoken)], questions[:1]).replies["random"]) == 4


def test_ids_that_are_whole_floats_are_ids(write: Write, questions: list[Path]) -> None:
    lines = [
        {"question_id": float(number), "answer": "Yes", "image": float(image[-5])}
        for number, image, _, _ in ASKED["random"]
    ]
    assert len(match_files([write("f.jsonl", *lines)], questions[:1]).replies["random"]) == 4
    with pytest.raises(MalformedFile, match=r"'question_id' must be a text, not 1.5"):
        read_answers(write("g.jsonl", {"question_id": 1.5, "answer": "Yes"}))


def test_the_form_says_what_was_read(write: Write) -> None:
    file = read_answer_file(write("kit.json", kit()))
    assert (
        file.words()
        == "VLMEvalKit: answers from 'prediction', questions from 'question', labels from 'answer'"
    )
    assert file.to_json() == {
        "file": "kit.json",
        "form": "VLMEvalKit",
        "answer": "prediction",
        "id": None,
        "question": "question",
        "label": "answer",
    }
