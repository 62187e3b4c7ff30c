"""Captions in the forms of those who write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from keepsight.errors import InputError
from keepsight.eval.chair.captions import read_caption_file
from keepsight.eval.errors import AmbiguousKeys, DuplicateImage, EmptyFile, MalformedFile

OFFICIAL = {
    "sentences": [
        {
            "image_id": 1290,
            "caption": "A child and a cake.",
            "mscoco_hallucinated_words": [],
            "mscoco_gt_words": ["cake"],
            "mscoco_generated_words": ["person", "cake"],
            "hallucination_idxs": [],
            "words": ["a", "child"],
            "metrics": {"CHAIRs": 0, "CHAIRi": 0.0, "Recall": 1.0},
        },
        {"image_id": 42, "caption": "A bear.", "mscoco_generated_words": ["bear"], "metrics": {}},
    ],
    "overall_metrics": {"CHAIRs": 0.0, "CHAIRi": 0.0},
}
IN_2018 = {
    "overall": {"CIDEr": 1.0},
    "imgToEval": {
        "1290": {"image_id": 1290, "caption": "a child", "Bleu_1": 0.5, "SPICE": {"All": {}}},
        "42": {"caption": "a bear", "CIDEr": 1.5},
    },
}
KIT = [
    {
        "index": 0,
        "image_id": 1290,
        "question": "Describe.",
        "answer": "A reference.",
        "prediction": "a child",
    },
    {
        "index": 1,
        "image_id": "000000000042.jpg",
        "question": "Describe.",
        "answer": "R.",
        "prediction": "a bear",
    },
]
LMMS = [
    {"doc_id": 0, "target": ["r"], "filtered_resps": ["a child"], "coco_cap_chair_i": {"image_id": 1290}},
    {
        "doc_id": 1,
        "target": ["r"],
        "filtered_resps": ["a bear"],
        "coco_cap_chair_i": {"image_id": 42, "caption": "x"},
    },
]
POPE = [
    {"question_id": 0, "image_id": 1290, "prompt": "Describe.", "text": "a child"},
    {"question_id": 1, "image_id": 42, "prompt": "Describe.", "text": "a bear"},
]


def written(tmp_path: Path, content: object, *, indent: int | None = None) -> Path:
    path = tmp_path / "said.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "writer", "key", "image"),
    [
        (OFFICIAL, "official CHAIR output (sentences)", "caption", "image_id"),
        (IN_2018, "imgToEval, captions of 2018", "caption", "image_id"),
        (KIT, "VLMEvalKit", "prediction", "image_id"),
        (LMMS, "lmms-eval (--log_samples)", "filtered_resps", None),
        (POPE, "POPE's caption_data", "text", "image_id"),
    ],
)
def test_forms(
    tmp_path: Path, content: object, writer: str, key: str, image: str | None, indent: int | None
) -> None:
    read = read_caption_file(written(tmp_path, content, indent=indent))
    assert [caption.image_id for caption in read.captions] == [1290, 42]
    assert [caption.caption.lower().rstrip(".")[:7] for caption in read.captions] in (["a child", "a bear"],)
    assert read.to_json() == {"file": "said.json", "form": writer, "caption": key, "image": image}
    assert read.words().startswith(f"{writer}: captions from '{key}'")


def test_a_form_of_lines_may_be_one_line(tmp_path: Path) -> None:
    read = read_caption_file(written(tmp_path, {"image_id": 7.0, "caption": "a"}))
    assert [caption.image_id for caption in read.captions] == [7]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ([{"image_id": 1, "caption": "reference", "answer": "a"}], AmbiguousKeys, "'caption' and 'answer' .*--caption-key"),
        ([{"image_id": 1, "caption": "r", "prediction": "a"}], AmbiguousKeys, "'caption' and 'prediction'"),
        ([{"image": "a.jpg", "caption": "a"}], MalformedFile, r"'image_id' is missing .*'image'.*--image-key"),
        ({"sentences": []}, EmptyFile, "holds no caption"),
        ({"sentences": [3]}, MalformedFile, "sentence 1: an object with 'caption' was expected"),
        ({"sentences": [{"caption": "a"}]}, MalformedFile, "sentence 1: the key 'image_id' is missing"),
        ({"imgToEval": {}}, EmptyFile, "holds no caption"),
        ({"imgToEval": {"1": "a"}}, MalformedFile, 'image "1": an object'),
        ({"imgToEval": {"1": {"caption": [{"caption": "a"}]}}}, MalformedFile, "'caption' must be a text"),
        ({"imgToEval": {"1": {"caption": "a"}, "01": {"caption": "b"}}}, DuplicateImage, "captioned before"),
        ([LMMS[0] | {"coco_cap_chair_i": 3}], MalformedFile, "'image_id' is missing"),
        ([LMMS[0] | {"coco_cap_chair_i": {"image_id": []}}], MalformedFile, "an image id is"),
        ([KIT[0] | {"image_id": None}], MalformedFile, "an image id is"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, content: object, error: type[InputError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_caption_file(written(tmp_path, content))


def test_keys_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"img": "COCO_val2014_000000000042.jpg", "caption": "reference", "said": "a"}])
    read = read_caption_file(path, caption_key="said", image_key="img")
    assert [(caption.image_id, caption.caption) for caption in read.captions] == [(42, "a")]
    for options, words in (
        (
            {"caption_key": "sad", "image_key": "img"},
            r"no entry has the key 'sad' \(--caption-key\); keys: \"img\", ",
        ),
        ({"caption_key": "said", "image_key": "image"}, r"no entry has the key 'image' \(--image-key\)"),
    ):
        with pytest.raises(MalformedFile, match=words):
            read_caption_file(path, **options)


def test_a_failed_answer_of_a_harness_is_no_caption(tmp_path: Path) -> None:
    rows = [KIT[0], KIT[1] | {"prediction": "Failed to obtain answer via API."}]
    read = read_caption_file(written(tmp_path, rows))
    assert ([caption.image_id for caption in read.captions], len(read.failed)) == ([1290], 1)
    with pytest.raises(EmptyFile, match=r"holds no caption \(1 failed\)"):
        read_caption_file(written(tmp_path, rows[1:]))
