"""Thousands of broken files: each is read, or refused by a named error."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from mutations import fuzz

from keepsight.eval.annotations import load_truth
from keepsight.eval.chair.captions import read_captions
from keepsight.eval.chair.score import COCO, score
from keepsight.eval.chair.synonyms import read_vocabulary

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
