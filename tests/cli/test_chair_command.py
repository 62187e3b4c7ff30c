from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from keepsight.cli.chair import chair
from keepsight.errors import KeepsightError
from keepsight.eval.errors import EmptyFile, UnknownFamily, UnknownImage

CAPTIONS = [
    {"image_id": 1, "caption": "A man eats a hot dog next to his dog.", "method": "greedy"},
    {"image_id": 2, "caption": "A cat on a chair.", "method": "greedy"},
]
TRUTH = [{"image_id": 1, "objects": ["person", "hot dog"]}, {"image_id": 2, "objects": ["cat", "chair"]}]


@pytest.fixture
def said(tmp_path: Path) -> Path:
    return lines(tmp_path / "said.jsonl", CAPTIONS)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return lines(tmp_path / "truth.jsonl", TRUTH)


def lines(path: Path, entries: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(chair)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prints_figures_in_percent_with_intervals_and_marks_what_is_made_up(said: Path, truth: Path) -> None:
    result = run(said, "--ground-truth", truth)
    assert result.exit_code == 0, result.output
    assert "CHAIR, family pattern, 2 captions" in result.output
    figures = {
        line.split()[0]: line.split()[1:3] for line in result.output.splitlines() if line[:1].isalpha()
    }
    assert figures["CHAIR_s"] == ["50.0", "0.0–100.0"]
    assert figures["CHAIR_i"] == ["20.0", "0.0–33.3"]
    assert figures["recall"] == ["100.0", "100.0–100.0"]
    assert "A man eats a hot dog next to his [dog]." in result.output
    assert "A cat on a chair." not in result.output


def test_json_is_written_whole_and_holds_the_report(said: Path, truth: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    assert run(said, "--ground-truth", truth, "--json", out, "--resamples", 0).exit_code == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert (written["family"], written["n"], written["chair_s"], written["chair_i"]) == (
        "pattern",
        2,
        0.5,
        0.2,
    )
    assert written["captions"][0]["hallucinated"] == [
        {"word": "dog", "object": "dog", "index": 9, "span": [33, 36]}
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "said.jsonl", "truth.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), EmptyFile),
        (("--ground-truth", "{truth}", "--family", "patern"), UnknownFamily),
        (("--ground-truth", "{truth}", "--method", "vcd"), EmptyFile),
        (("--ground-truth", "{truth}", "--json", "{truth}/no/out.json"), KeepsightError),
    ],
)
def test_bad_input_is_a_named_error_and_leaves_no_file(
    said: Path, truth: Path, tmp_path: Path, arguments: tuple[str, ...], error: type[KeepsightError]
) -> None:
    out = tmp_path / "out.json"
    filled = [argument.format(truth=truth) for argument in arguments]
    if "--json" not in filled:
        filled += ["--json", str(out)]
    result = run(said, *filled)
    assert isinstance(result.exception, error), result.output
    assert not out.exists()


def test_an_old_result_survives_a_failure(said: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    one = lines(tmp_path / "one.jsonl", TRUTH[:1])
    result = run(said, "--ground-truth", one, "--json", out)
    assert isinstance(result.exception, UnknownImage)
    assert "image 2" in str(result.exception)
    assert out.read_text() == "old"


def test_per_caption_shows_all_and_the_default_the_worst(tmp_path: Path) -> None:
    texts = ["a dog", "a dog and a cat", "a dog", "a dog, a cat and a cow", "a cat and a bed", "a bus stop"]
    said = lines(tmp_path / "s.jsonl", [{"image_id": i, "caption": text} for i, text in enumerate(texts)])
    truth = lines(tmp_path / "t.jsonl", [{"image_id": i, "objects": []} for i in range(len(texts))])
    few, all_of_them = (run(said, "--ground-truth", truth, *more).output for more in ((), ("--per-caption",)))
    assert "5 of 6" in few
    assert few.count("[dog]") == 2
    assert few.index("[cow]") < few.index("a [dog] and a [cat]\n")
    assert all_of_them.count("[dog]") == 4


def test_coco_files_are_read_and_missing_references_are_mentioned(said: Path, tmp_path: Path) -> None:
    instances = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 5, "image_id": 2, "category_id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    references = {
        "images": [{"id": 1}],
        "annotations": [{"id": 6, "image_id": 1, "caption": "A woman, a hot dog and a puppy."}],
    }
    for name, content in (("i.json", instances), ("c.json", references)):
        (tmp_path / name).write_text(json.dumps(content))
    alone = run(said, "--annotations", tmp_path / "i.json").output
    assert "Without --references" in alone
    assert "[man]" in alone
    both = run(said, "--annotations", tmp_path / "i.json", "--references", tmp_path / "c.json").output
    assert "Without --references" not in both
    assert "1 of 2" in both
    assert "[man]" not in both
