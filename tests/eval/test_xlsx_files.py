"""Workbooks as VLMEvalKit writes them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutations import fuzz

from keepsight.errors import InputError
from keepsight.eval.chair.captions import read_caption_file
from keepsight.eval.errors import EmptyFile, MalformedFile, MissingData
from keepsight.eval.pope.files import read_answer_file
from keepsight.eval.pope.pairing import match_files

ROWS = [
    ["index", "question", "answer", "category", "prediction", "image_id"],
    [0, "Is there a dog in the image?", "Yes", "random,popular", "No, there is none.", 42],
    [1.0, "Is there a cat in the image?", "No", "random", None, "COCO_val2014_000000000042.jpg"],
    [None] * 6,
    [2, "Is there a bus in the image?", "No", "popular", "Failed to obtain answer via API.", 42.0],
]


def workbook(path: Path, rows: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_rows_are_read_as_the_same_file_in_json(tmp_path: Path) -> None:
    path = workbook(tmp_path / "kit.xlsx", ROWS)
    as_json = tmp_path / "kit.json"
    filled = [["" if cell is None else cell for cell in row] for row in ROWS[1:] if any(row)]
    as_json.write_text(json.dumps([dict(zip(ROWS[0], row, strict=True)) for row in filled]))
    book, listed = read_answer_file(path), read_answer_file(as_json)
    assert book.shape == listed.shape
    assert [(one.answer, one.label, one.splits, one.image) for one in book.said] == [
        ("No, there is none.", "yes", ("random", "popular"), 42),
        ("", "no", ("random",), 42),
        (None, "no", ("popular",), 42),
    ]
    assert [one.answer for one in listed.said] == [one.answer for one in book.said]
    assert book.said[2].where.endswith("kit.xlsx, row 5")
    joined = match_files([path])
    assert {split: len(group) for split, group in joined.replies.items()} == {"random": 2, "popular": 1}
    assert joined.failed == {"random": 0, "popular": 1}


def test_captions_are_read_from_workbooks(tmp_path: Path) -> None:
    rows = [["image_id", "caption"], [42, "A dog."], ["000000000043.jpg", "A cat."]]
    read = read_caption_file(workbook(tmp_path / "said.xlsx", rows))
    assert [(caption.image_id, caption.caption) for caption in read.captions] == [
        (42, "A dog."),
        (43, "A cat."),
    ]


def test_bad_workbooks_are_named(tmp_path: Path) -> None:
    for rows, error, words in (
        ([], EmptyFile, "holds no answer"),
        (ROWS[:1], EmptyFile, "holds no answer"),
        ([["index", "index"], [1, 2]], MalformedFile, "each with a name of its own"),
        ([["index", None, "answer"], [1, 2, 3]], MalformedFile, "must name every column"),
        ([["question_id", "answer"], [1, True]], MalformedFile, "row 2: 'answer' must be a text, not true"),
    ):
        with pytest.raises(error, match=words):
            read_answer_file(workbook(tmp_path / "kit.xlsx", rows))
    (tmp_path / "text.xlsx").write_text("no workbook")
    with pytest.raises(MalformedFile, match="is not a workbook that can be read"):
        read_answer_file(tmp_path / "text.xlsx")
    for path in (tmp_path / "gone.xlsx", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_answer_file(path)


def test_broken_workbooks_are_refused_by_name(tmp_path: Path) -> None:
    original = workbook(tmp_path / "kit.xlsx", ROWS).read_bytes()
    outcome = fuzz(read_answer_file, [original], tmp_path / "broken.xlsx", times=150, seed=7)
    assert outcome.refused > 40


def test_without_openpyxl_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: Callable[..., Any] = builtins.__import__

    def lacks(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "openpyxl":
            raise ModuleNotFoundError("No module named 'openpyxl'", name="openpyxl")
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacks)
    (tmp_path / "kit.xlsx").write_bytes(b"PK")
    with pytest.raises(
        MissingData, match=r"needs openpyxl; install the extra 'xlsx': pip install -e '\.\[xlsx\]'"
    ):
        read_answer_file(tmp_path / "kit.xlsx")
