"""Which key of a file holds what the model said: known forms decide, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keepsight.eval.answer_shapes import (
    AMBER,
    CAPTIONS,
    NAMED,
    ONLY,
    YES_NO,
    Shape,
    choose,
    could_be_words,
    parts,
    repeat_labels,
)
from keepsight.eval.errors import AmbiguousKeys, MalformedFile

PATH = Path("said.json")


def entries(*objects: Any) -> list[tuple[str, Any]]:
    return [(f"said.json:{at}", one) for at, one in enumerate(objects, start=1)]


def chosen(*objects: Any, shapes: tuple[Shape, ...] = YES_NO, key: str | None = None) -> Shape:
    return choose(entries(*objects), shapes, PATH, key=key)


@pytest.mark.parametrize(
    ("entry", "writer", "answer", "question", "label"),
    [
        ({"index": 0, "question": "q", "answer": "Yes", "prediction": "No", "category": "random"},
         "VLMEvalKit", "prediction", "question", "answer"),
        ({"index": 0, "question": "q", "answer": "Yes", "prediction": "No", "extracted": "No", "score": False},
         "VLMEvalKit", "prediction", "question", "answer"),
        ({"doc_id": 0, "target": "Yes", "input": "q", "resps": [["No"]], "filtered_resps": ["No"]},
         "lmms-eval (--log_samples)", "filtered_resps", "input", "target"),
        ({"query": "q", "label": 1, "ans": "No", "question": "USER: q ASSISTANT:", "file_path": "x"},
         "PAI, PAINT", "ans", "query", "label"),
        ({"question_id": 1, "prompt": "q", "text": "No", "answer_id": "x", "model_id": "m", "metadata": {}},
         "LLaVA, VCD, LLaVA-Align, ClearSight", "text", "prompt", None),
        ({"question_id": 1, "prompt": "q", "text": "No", "image": "a.jpg", "naive": {"yes": 0.1}, "none": {}, "unk": {}},
         "LLaVA, VCD, LLaVA-Align, ClearSight", "text", "prompt", None),
        ({"id": "random/1", "image_id": 1, "answer": "No", "error": None, "method": "m", "prompt_tokens": 3},
         "keepsight run", "answer", None, None),
        ({"question": "q", "answer": "No"}, "POPE, without ids", "answer", "question", None),
        ({"question_id": 1, "text": "q", "label": "yes", "answer": "No"},
         "POPE's questions with answers added", "answer", "text", "label"),
        ({"question_id": 1, "question": "q", "label": "yes", "text": "No"},
         "answers with their questions and labels", "text", "question", "label"),
        ({"question_id": 1, "question": "q", "label": "yes", "response": "No"}, ONLY, "response", "question", "label"),
        ({"id": 1, "modelAnswer": "No"}, ONLY, "modelAnswer", None, None),
    ],
)  # fmt: skip
def test_known_forms_say_which_key_is_which(
    entry: dict, writer: str, answer: str, question: str | None, label: str | None
) -> None:
    shape = chosen(entry)
    assert (shape.writer, shape.answer, shape.question, shape.label) == (writer, answer, question, label)


@pytest.mark.parametrize(
    ("entry", "both"),
    [
        ({"question_id": 1, "question": "q", "answer": "yes", "response": "No"}, "'answer' and 'response'"),
        ({"id": 1, "answer": "yes", "output": "No"}, "'answer' and 'output'"),
        ({"question_id": 1, "answer": "yes", "pred": "No"}, "'answer' and 'pred'"),
        ({"question_id": 1, "question": "q", "label": "yes", "answer": "No", "text": "No"}, "'answer' and 'text'"),
        ({"id": 1, "question": "q", "answer": "yes", "prediction": "No"}, "'answer' and 'prediction'"),
        ({"question_id": 1, "text": "Yes", "answer": "yes"}, "'text' and 'answer'"),
        ({"index": 1, "question": "q", "answer": "yes", "prediction": "No", "raw_output": "N"},
         "'answer' and 'prediction' and 'raw_output'"),
        ({"question_id": 1, "prompt": "q", "text": "No", "outputs": ["No"]}, "'text' and 'outputs'"),
    ],
)  # fmt: skip
def test_several_keys_of_no_known_form_are_refused_by_name(entry: dict, both: str) -> None:
    with pytest.raises(AmbiguousKeys, match=f"{both} could each .* --answer-key"):
        chosen(entry)
    # Naming the key decides, whatever else is there.
    for key in both.replace("'", "").split(" and "):
        shape = chosen(entry, key=key)
        assert shape.answer == key


def test_all_entries_decide_together() -> None:
    # The second line lacks the model's words. Read by itself, its label would be scored as its answer.
    full = {"index": 0, "question": "q", "answer": "Yes", "prediction": "No"}
    assert chosen(full, {"index": 1, "question": "q", "answer": "Yes"}).answer == "prediction"
    with pytest.raises(AmbiguousKeys, match="'answer' and 'response'"):
        chosen({"id": 1, "answer": "Yes"}, {"id": 2, "answer": "Yes", "response": "No"})


def test_a_key_without_words_is_no_candidate() -> None:
    for other in (None, 0.5, True, {"yes": 1}, [], [0.1, 0.9], [["No"]]):
        assert chosen({"question_id": 1, "answer": "No", "output": other}).answer == "answer"


@pytest.mark.parametrize(
    "name",
    ["answer", "Answer", "model_answer", "modelAnswer", "model-answer", "pred", "predicted_answer", "generated_text"],
)  # fmt: skip
def test_names_of_what_a_model_said(name: str) -> None:
    assert could_be_words(name)


@pytest.mark.parametrize(
    "name",
    ["answer_id", "gt_answer", "ground_truth_answer", "correct_answer", "prompt_text", "output_tokens", "answer_type",
     "context", "captioner", "presponse", "method", ""],
)  # fmt: skip
def test_names_of_something_else(name: str) -> None:
    assert not could_be_words(name)


def test_a_wrong_key_lists_the_keys() -> None:
    with pytest.raises(
        MalformedFile, match=r"no entry has the key 'anser' \(--answer-key\); keys: \"id\", \"answer\""
    ):
        chosen({"id": 1, "answer": "No"}, key="anser")
    with pytest.raises(MalformedFile, match=r"said.json:1: the key 'answer' is missing \(keys: \"id\"\)"):
        chosen({"id": 1})
    with pytest.raises(MalformedFile, match=r"said.json:2: an object with 'caption' was expected, not 3"):
        chosen({"image_id": 1, "caption": "a"}, 3, shapes=CAPTIONS)


def test_a_named_key_of_a_known_form_keeps_its_other_keys() -> None:
    entry = {"index": 0, "question": "q", "answer": "Yes", "prediction": "No"}
    assert chosen(entry, key="prediction").label == "answer"
    other = chosen({"id": 1, "text": "q", "label": "yes", "response": "No"}, key="response")
    assert (other.writer, other.question, other.label) == (NAMED, "text", "label")


def test_forms_of_captions_and_responses() -> None:
    official = {
        "image_id": 1,
        "caption": "a",
        "mscoco_generated_words": ["dog"],
        "words": ["a"],
        "metrics": {"CHAIRs": 0},
    }
    assert chosen(official, shapes=CAPTIONS).answer == "caption"
    listed = {"question_id": 0, "image_id": 1, "prompt": "p", "text": "a"}
    assert chosen(listed, shapes=CAPTIONS).writer == "POPE's caption_data"
    with pytest.raises(AmbiguousKeys, match="'caption' and 'prediction'"):
        chosen({"image_id": 1, "caption": "reference", "prediction": "a"}, shapes=CAPTIONS)
    with pytest.raises(AmbiguousKeys, match="'response' and 'answer'"):
        chosen({"id": 1, "response": "Yes", "answer": "no"}, shapes=AMBER)


def test_entries_are_parted_only_where_each_has_one_key_of_words() -> None:
    mixed = entries({"id": 1, "response": "a"}, {"image_id": 2, "caption": "b"}, {"id": 3, "error": "x"})
    assert [[where for where, _ in part] for part in parts(mixed)] == [
        ["said.json:1"],
        ["said.json:2"],
        ["said.json:3"],
    ]
    both = entries({"id": 1, "answer": "yes"}, {"id": 2, "answer": "yes", "response": "No"})
    assert parts(both) == [both]


def test_answers_that_are_their_labels_are_suspected_from_ten_on() -> None:
    same = [("Yes ", "yes"), ("no", "no")] * 5
    assert repeat_labels(same)
    assert not repeat_labels(same[:9])
    assert not repeat_labels([*same, ("Yes.", "yes")])
