from __future__ import annotations

import json
from pathlib import Path

import pytest

from keepsight.errors import InputError
from keepsight.eval.chair.captions import Caption, read_caption_file, read_captions
from keepsight.eval.errors import DuplicateImage, EmptyFile, MalformedFile
from keepsight.eval.image_ids import image_id


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "said.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (42, 42),
        ("42", 42),
        ("000000000042", 42),
        ("COCO_val2014_000000000042.jpg", 42),
        ("val2014/COCO_train2014_000000000042.png", 42),
        (" kitchen-3 ", "kitchen-3"),
        (337443.0, 337443),
        ("000000337443.jpg", 337443),
        ("val2017/000000337443.JPG", 337443),
        ("COCO_val2014_000000337443", 337443),
        ("COCO_val2014_42.jpg", "COCO_val2014_42.jpg"),
        ("2405722.jpg", "2405722.jpg"),
        ("0000000337443.jpg", "0000000337443.jpg"),
        ("000000337443.txt", "000000337443.txt"),
        ("²", "²"),
    ],
)
def test_image_ids(given: object, meant: int | str) -> None:
    assert image_id(given) == meant


@pytest.mark.parametrize(
    "given", [True, None, 4.5, float("nan"), float("inf"), 1e300, 2.0**53 + 2, "", "  ", [1]]
)
def test_no_image_ids(given: object) -> None:
    with pytest.raises(InputError, match="an image id is"):
        image_id(given)


def test_reads_json_lines_and_lists_alike(tmp_path: Path) -> None:
    entries = [
        {"image_id": "7", "caption": "ein Café", "model": "x"},
        {"image_id": 8, "caption": "", "method": "vcd"},
    ]
    lines = written(tmp_path, "\ufeff" + "\n\n".join(map(json.dumps, entries)) + "\n")
    assert read_captions(lines) == [
        Caption(7, "ein Café", None, f"{lines}:1"),
        Caption(8, "", "vcd", f"{lines}:3"),
    ]
    listed = read_captions(written(tmp_path, json.dumps(entries, indent=1)))
    assert [(c.image_id, c.caption, c.method) for c in listed] == [(7, "ein Café", None), (8, "", "vcd")]
    assert listed[1].where == f"{lines}, entry 2"


def test_a_line_separator_inside_a_caption_is_no_new_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"image_id": 1, "caption": "a\u2028dog"}\r\n{"image_id": 2, "caption": "b"}')
    assert [caption.caption for caption in read_captions(path)] == ["a\u2028dog", "b"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", EmptyFile, "holds no caption"),
        ("[]", EmptyFile, "holds no caption"),
        ('{"image_id": 1, "caption": "a"}\n{"image_id": 2, "cap', MalformedFile, r":2: is not JSON"),
        (
            '{"image_id": 1, "caption": "a"}\n{"image_id": 2}',
            MalformedFile,
            r":2: the key 'caption' is missing",
        ),
        ('{"caption": "a"}', MalformedFile, r":1: the key 'image_id' is missing \(keys: 'caption'\)"),
        (
            '{"image_id": 1.5, "caption": "a"}',
            MalformedFile,
            r":1: an image id is a whole number or a text, not 1.5",
        ),
        ('{"image_id": 1, "caption": null}', MalformedFile, r":1: 'caption' must be a text, not null"),
        ('{"image_id": 1, "caption": "a \\ud83d"}', MalformedFile, r":1: 'caption' holds half a character"),
        ("[" * 100_000, MalformedFile, "is not JSON that can be read"),
        (
            '{"image_id": 1, "caption": "a", "method": 3}',
            MalformedFile,
            r":1: 'method' must be a text, not 3",
        ),
        (
            '[{"image_id": 1, "caption": "a"}, 5]',
            MalformedFile,
            ", entry 2: an object with 'caption' was expected",
        ),
        ('[{"image_id": 1,]', MalformedFile, "is not JSON"),
        (
            '{"image_id": 1, "caption": "a"}\n{"image_id": "1", "caption": "b"}',
            DuplicateImage,
            r":2: image 1 .*:1\)",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(error, match=message) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_binary_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read \(No such file"):
        read_captions(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_captions(tmp_path)
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(MalformedFile, match="is not UTF-8 text"):
        read_captions(tmp_path / "cat.jpg")


def test_captions_of_several_methods_are_scored_one_at_a_time(tmp_path: Path) -> None:
    lines = [{"image_id": 1, "caption": name, "method": name} for name in ("greedy", "vcd")]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)))
    with pytest.raises(DuplicateImage, match=r"several methods \(greedy, vcd\)"):
        read_captions(path)
    assert [caption.caption for caption in read_captions(path, method="vcd")] == ["vcd"]
    with pytest.raises(EmptyFile, match="by the method 'm3id'"):
        read_captions(path, method="m3id")


def test_answers_of_a_run_are_captions_and_failed_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [
        {"id": "1", "image_id": 1, "method": "greedy", "answer": "a cat", "error": None},
        {"id": "2", "image_id": 2, "method": "greedy", "answer": None, "error": "BadImage: gone"},
        {"id": "2", "image_id": 2, "method": "vcd", "answer": "", "error": None},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    read = read_caption_file(path, method="greedy")
    assert [(caption.image_id, caption.caption) for caption in read.captions] == [(1, "a cat")]
    assert read.failed == (f"{path}:2",)
    assert [caption.caption for caption in read_captions(path, method="vcd")] == [""]
    path.write_text(json.dumps(lines[1]))
    with pytest.raises(EmptyFile, match=r"no caption \(1 failed\)"):
        read_captions(path)
