"""AMBER's files: what is read, and what is refused by file and entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from keepsight.errors import KeepsightError
from keepsight.eval.amber.files import (
    read_annotations,
    read_lexicon,
    read_queries,
    read_response_file,
    read_responses,
)
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "file.json"
        path.write_text(text, encoding="utf-8")
        return path

    return write


ANNOTATED = [
    {"id": 1, "type": "generative", "truth": ["person"], "hallu": ["dog"]},
    {"id": 2, "type": "relation", "truth": "no"},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
]


def test_reads_annotations_responses_captions_and_queries(file: Callable[[str], Path]) -> None:
    found = read_annotations(file(json.dumps(ANNOTATED)))
    assert [getattr(one, "type", None) for one in found.values()] == [None, "relation", "existence"]
    lines = [
        {"id": "1", "response": "A dog."},
        {"id": 2, "answer": "No", "error": None},
        {"id": 3, "answer": None, "error": "out of memory"},
        {"image_id": "AMBER_4", "image": "pictures/AMBER_4.jpg", "caption": "A cat."},
        {"id": 3, "answer": "Yes"},
    ]
    read = read_responses(file("\n".join(map(json.dumps, lines))))
    assert [(one.id, one.text) for one in read] == [(1, "A dog."), (2, "No"), (3, "Yes"), (4, "A cat.")]
    assert read_queries(file('[{"id": 1, "image": "AMBER_1.jpg", "query": "?"}]')) == {1: "AMBER_1.jpg"}


@pytest.mark.parametrize(
    ("read", "content", "error", "message"),
    [
        (read_annotations, [], EmptyFile, "holds no annotation"),
        (
            read_annotations,
            [*ANNOTATED, ANNOTATED[0]],
            DuplicateQuestion,
            "entry 4: id 1 stands in .*entry 1",
        ),
        (
            read_annotations,
            [ANNOTATED[1] | {"truth": "maybe"}],
            MalformedFile,
            "entry 1: 'truth' .* yes or no",
        ),
        (read_annotations, [ANNOTATED[1] | {"type": "odd"}], MalformedFile, "entry 1: 'type' must be one of"),
        (
            read_annotations,
            [ANNOTATED[0] | {"truth": "dog"}],
            MalformedFile,
            "entry 1: 'truth' must be a list",
        ),
        (
            read_annotations,
            [{"id": 1, "type": "generative", "truth": []}],
            MalformedFile,
            "'hallu' is missing",
        ),
        (read_responses, [], EmptyFile, "holds no response"),
        (
            read_responses,
            [{"id": True, "response": "a"}],
            MalformedFile,
            "entry 1: 'id' must be a whole number",
        ),
        (
            read_responses,
            [{"id": 1, "response": 2}],
            MalformedFile,
            "entry 1: 'response' must be a text, not 2",
        ),
        (
            read_responses,
            [{"id": 1, "response": "a"}] * 2,
            DuplicateQuestion,
            "entry 2: id 1 was answered before",
        ),
        (
            read_responses,
            [{"image_id": 7, "caption": "a"}],
            MalformedFile,
            "entry 1: a caption of 7, which",
        ),
        (read_responses, [{"id": 1, "response": "\ud83d"}], MalformedFile, "half a character"),
        (read_queries, [{"id": 1, "image": "a"}] * 2, DuplicateQuestion, "entry 2: id 1 comes twice"),
    ],
)
def test_files_are_refused_by_place(
    file: Callable[[str], Path],
    read: Callable[[Path], object],
    content: object,
    error: type[KeepsightError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        read(file(json.dumps(content)))


def test_a_lexicon_is_words_and_lists_of_words(file: Callable[[str], Path], tmp_path: Path) -> None:
    safe = tmp_path / "safe.txt"
    safe.write_text("orange\r\nlight\n\n")
    lexicon = read_lexicon(file('{"sofa": ["couch"], "sky": []}'), safe)
    assert (lexicon.known, lexicon.safe) == ({"sofa", "couch", "sky"}, {"orange", "light"})
    for text, error, message in (
        ("[]", MalformedFile, "maps words to lists"),
        ("{}", EmptyFile, "holds no word"),
        ('{"sofa": "couch"}', MalformedFile, "'sofa' must be a list of words"),
    ):
        with pytest.raises(error, match=message):
            read_lexicon(file(text), safe)


def test_vdgds_answers_are_known_by_their_pictures(file: Callable[[str], Path]) -> None:
    def line(number: int, picture: str, **changes: object) -> dict:
        return {
            "id": number,
            "pure_input": "Describe this image.",
            "image_path": f"../AMBER/image/{picture}",
            "input": "USER: <image> Describe this image. ASSISTANT:",
            "output": [f"said {number}"],
            "reference": "N/A",
            **changes,
        }

    # Its ids count from 0, and AMBER's from 1: by the ids, every description would be judged by another picture.
    lines = [line(0, "AMBER_1.jpg"), line(1, "AMBER_2.jpg")]
    read = read_response_file(file(json.dumps(lines, indent=4)))
    assert [(one.id, one.text) for one in read.responses] == [(1, "said 0"), (2, "said 1")]
    assert [form.words() for form in read.forms] == [
        "VDGD: answers from 'output', questions from 'pure_input'"
    ]
    for broken, words in (
        (line(0, "AMBER_1.jpg", pure_input="Is the sky sunny in this image?"), "with AMBER's ids"),
        (line(0, "COCO_1.jpg"), "not called AMBER_7.jpg"),
        (line(0, "AMBER_1.jpg", output=["a", "b"]), "must hold one answer, not 2"),
    ):
        with pytest.raises(MalformedFile, match=words):
            read_response_file(file(json.dumps([broken])))
    with pytest.raises(DuplicateQuestion, match="id 1 was answered before"):
        read_response_file(file(json.dumps([line(0, "AMBER_1.jpg"), line(1, "AMBER_1.jpg")])))


def test_a_picture_tells_no_question_and_float_ids_are_read(file: Callable[[str], Path]) -> None:
    asked = [{"img": "AMBER_1.jpg", "query": "Is the sky sunny in this image?", "response": "Yes"}]
    with pytest.raises(MalformedFile, match="'id' is missing"):
        read_response_file(file(json.dumps(asked)))
    with pytest.raises(MalformedFile, match="several questions are about it"):
        read_response_file(file(json.dumps(asked)), image_key="img")
    described = [{"img": "AMBER_1.jpg", "query": "Describe this image.", "response": "A sky."}]
    read = read_response_file(file(json.dumps(described)), image_key="img")
    assert [(one.id, one.text) for one in read.responses] == [(1, "A sky.")]
    assert [one.id for one in read_responses(file('[{"id": 7.0, "response": "Yes"}]'))] == [7]
    with pytest.raises(MalformedFile, match="'id' must be a whole number"):
        read_responses(file('[{"id": 7.5, "response": "Yes"}]'))
