"""Thousands of broken files: each is read, or refused by a named error."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from mutations import fuzz

from keepsight.errors import KeepsightError
from keepsight.eval.amber.files import read_response_file
from keepsight.eval.annotations import load_truth
from keepsight.eval.chair.captions import read_caption_file, read_captions
from keepsight.eval.chair.score import COCO, score
from keepsight.eval.chair.synonyms import read_vocabulary
from keepsight.eval.pope.pairing import match_files
from keepsight.eval.pope.repope import correct
from keepsight.eval.pope.score import score as score_answers

SAID = [
    {"image_id": 1, "caption": "A dog on a sofa.", "method": "greedy"},
    {"image_id": "2", "caption": "two men"},
]
LISTS = [{"image_id": 1, "objects": ["cat", "sofa"]}, {"image_id": "kitchen", "objects": []}]
COMPACT = {
    "family": "pattern",
    "vocabulary": {"name": "coco", "sha256": COCO.sha256},
    "categories": ["cat", "couch"],
    "objects": {"1": [0, 1], "2": []},
}
INSTANCES = {
    "images": [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"}, {"id": 2}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 17, "segmentation": [[1.5, 2, 3e-1]], "iscrowd": 0},
        {"id": 6, "image_id": 2, "category_id": 62, "segmentation": {"counts": [1], "size": [2, 2]}},
    ],
    "categories": [{"id": 17, "name": "cat"}, {"id": 62, "name": "chair"}],
}
REFERENCES = {
    "images": [{"id": 1}],
    "annotations": [{"id": 6, "image_id": 1, "caption": "A kitten and two men."}],
}


def lines(entries: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, entries)).encode()


def test_captions(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        said = read_captions(path)
        score(said, {caption.image_id: ["dog"] for caption in said}, resamples=0)

    originals = [lines(SAID), json.dumps(SAID).encode()]
    outcome = fuzz(read, originals, tmp_path / "said.jsonl", times=2000, seed=1)
    assert min(outcome) > 200


OFFICIAL = {
    "sentences": [
        {"image_id": 1, "caption": "a dog", "mscoco_generated_words": ["dog"], "metrics": {"CHAIRs": 0}}
    ],
    "overall_metrics": {"CHAIRs": 0.0},
}
IN_2018 = {"overall": {}, "imgToEval": {"1": {"image_id": 1, "caption": "a dog"}, "2": {"caption": "a cat"}}}
SAMPLES = [
    {"doc_id": 0, "target": "yes", "input": "Is there a dog in the image?", "filtered_resps": ["Yes"], "resps": [["Yes"]],
     "pope_accuracy": {"question_id": "1"}, "coco_cap_chair_i": {"image_id": 1}},
    {"doc_id": 1, "target": "no", "input": "Is there a cat in the image?", "filtered_resps": ["No"], "resps": [["No"]],
     "pope_accuracy": {"question_id": "2"}, "coco_cap_chair_i": {"image_id": 2}},
]  # fmt: skip
KIT = [
    {"index": 0, "image_id": 1.0, "question": "Is there a dog in the image?", "answer": "Yes", "category": "random,popular",
     "prediction": "No."},
    {"index": 1, "image_id": "000000000002.jpg", "question": "Is there a cat in the image?", "answer": "No",
     "category": "random", "prediction": "Failed to obtain answer via API."},
]  # fmt: skip
PAINT = [
    {
        "query": "Is there a dog in the image?",
        "label": 1,
        "ans": "Yes.",
        "question": "USER: Is there a dog in the image?",
    },
    {
        "query": "Is there a cat in the image?",
        "label": 0,
        "ans": "No.",
        "question": "USER: Is there a cat in the image?",
    },
]
LLAVA = [
    {"question_id": 0, "prompt": "Is there a dog in the image?", "text": "Yes", "answer_id": "x"},
    {"question_id": 1, "prompt": "Is there a cat in the image?", "text": "No", "answer_id": "y"},
]
ASKED = [
    {"question_id": 1, "image": 1, "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": 2, "text": "Is there a cat in the image?", "label": "no"},
]
AMBER = [
    {"id": 0, "pure_input": "Describe this image.", "image_path": "a/AMBER_1.jpg", "output": ["A dog."]},
    {"id": 1, "pure_input": "Describe this image.", "image_path": "a/AMBER_2.jpg", "output": ["A cat."]},
]


@pytest.mark.parametrize(
    "content", [OFFICIAL, IN_2018, SAMPLES, KIT], ids=["official", "2018", "lmms", "kit"]
)
def test_other_forms_of_captions(tmp_path: Path, content: object) -> None:
    originals = [json.dumps(content).encode(), json.dumps(content, indent=1).encode()]
    keys = ["caption", "filtered_resps", "prediction", "image_id"]

    def read(path: Path) -> None:
        read_caption_file(path)
        for key in keys:
            with contextlib.suppress(KeepsightError):
                read_caption_file(path, caption_key=key, image_key="image_id")

    outcome = fuzz(read, originals, tmp_path / "said.json", times=500, seed=6)
    assert min(outcome) > 40


@pytest.mark.parametrize("content", [SAMPLES, KIT, PAINT, LLAVA], ids=["lmms", "kit", "paint", "llava"])
def test_other_forms_of_answers(tmp_path: Path, content: list[dict]) -> None:
    """Read by themselves, against one file of questions, and against two in whose order the ids run."""
    halves = [tmp_path / "q_random.json", tmp_path / "q_popular.json"]
    whole = tmp_path / "q.json"
    whole.write_bytes(lines(ASKED))
    for path, line in zip(halves, ASKED, strict=True):
        path.write_bytes(lines([{**line, "question_id": 1}]))

    def read(path: Path) -> None:
        good = 0
        for questions in ([], [whole], halves):
            for partial in (False, True):
                try:
                    joined = match_files([path], questions, partial=partial)
                except KeepsightError as error:
                    last = error
                    continue
                good += 1
                for group in joined.replies.values():
                    if group:
                        score_answers(group, resamples=0)
                with contextlib.suppress(KeepsightError):
                    correct(joined, [whole])
        if not good:
            raise last

    originals = [json.dumps(content).encode(), lines(content)]
    outcome = fuzz(read, originals, tmp_path / "said.json", times=500, seed=7)
    assert min(outcome) > 40


def test_labels_of_repope(tmp_path: Path) -> None:
    asked, said = tmp_path / "q.json", tmp_path / "a.jsonl"
    asked.write_bytes(lines(ASKED))
    said.write_bytes(lines([{"question_id": at, "text": "Yes"} for at in (1, 2)]))
    joined = match_files([said], [asked])
    outcome = fuzz(
        lambda path: correct(joined, [path]), [lines(ASKED)], tmp_path / "r.json", times=500, seed=8
    )
    assert min(outcome) > 20


def test_other_forms_of_responses(tmp_path: Path) -> None:
    mixed = [
        {"id": 7, "response": "Yes"},
        {"image_id": "AMBER_3", "caption": "A dog."},
        {"id": 9, "error": "x"},
    ]
    outcome = fuzz(
        read_response_file, [lines(AMBER), json.dumps(mixed).encode()], tmp_path / "r.json", times=600, seed=9
    )
    assert min(outcome) > 40


@pytest.mark.parametrize(
    "content", [LISTS, COMPACT, INSTANCES, REFERENCES], ids=["lists", "compact", "instances", "captions"]
)
def test_ground_truth(tmp_path: Path, content: object) -> None:
    originals = [json.dumps(content).encode(), json.dumps(content, indent=1).encode()]
    if content is LISTS:
        originals.append(lines(LISTS))
    some = fuzz(
        lambda path: load_truth([path], [1, "kitchen"]), originals, tmp_path / "t.json", times=600, seed=2
    )
    every = fuzz(lambda path: load_truth([path], None), originals, tmp_path / "t.json", times=600, seed=3)
    assert some.refused > 60
    assert every.refused > 60
    assert min(some.read, every.read) > 40


def test_gzipped_ground_truth(tmp_path: Path) -> None:
    originals = [gzip.compress(json.dumps(INSTANCES).encode(), mtime=0)]
    outcome = fuzz(
        lambda path: load_truth([path], None), originals, tmp_path / "t.json.gz", times=500, seed=4
    )
    assert outcome.refused > 200


def test_vocabularies(tmp_path: Path) -> None:
    table = b"# a zoo\ngoldfish, fish, koi\n\nsea lion, seal\nbus, minibus\nTV, television set\n"
    outcome = fuzz(read_vocabulary, [table], tmp_path / "zoo.txt", times=1500, seed=5)
    assert min(outcome) > 150
