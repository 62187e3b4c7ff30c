"""``keepsight beaf score``: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

QUESTIONS = [
    {"id": 0, "image": "a.jpg", "question": "A dog?", "orig_img": True, "removed_q": True, "gt": "yes"},
    {"id": 1, "image": "a.jpg", "question": "A cat?", "orig_img": True, "removed_q": False, "gt": "no"},
    {"id": 2, "image": "a_00.png", "question": "A dog?", "orig_img": False, "removed_q": True, "gt": "no"},
    {"id": 3, "image": "a_00.png", "question": "A cat?", "orig_img": False, "removed_q": False, "gt": "no"},
]
ANSWERS = [{"id": number, "answer": text} for number, text in enumerate(["Yes.", "No.", "No.", "\x1b[31m?"])]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "qna.json"
    path.write_text(json.dumps(QUESTIONS))
    return path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(ANSWERS))
    return path


def test_prints_figures_pairs_and_what_it_could_not_read(
    run: Callable[..., object], answers: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    result = run("beaf", "score", answers, "--questions", questions, "--json", out)
    assert result.exit_code == 0, result.output
    shown = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines() if line[:1].isalpha()}
    assert (shown["TU"], shown["SB+"], shown["ID"], shown["accuracy"]) == (
        "100.00",
        "0.00",
        "100.00",
        "75.00",
    )
    assert "parser strict, 4 questions, 2 pictures of 1 original" in result.stdout
    assert "1 removed pair, 1 other pair" in result.stdout
    assert "1 of 4 answers could not be read" in result.stdout
    assert "\x1b" not in result.stdout
    written = json.loads(out.read_text())
    assert (written["tu"], written["id"], written["unparsed"], written["parser"]) == (1, 1, 1, "strict")
    assert written["answers"][3] == {
        "id": 3,
        "original": "a",
        "label": "no",
        "answer": "\x1b[31m?",
        "decision": None,
    }


def test_the_official_rule_is_named(run: Callable[..., object], answers: Path, questions: Path) -> None:
    result = run("beaf", "score", answers, "-q", questions, "--parser", "official", "--resamples", 0)
    assert "parser official (that of BEAF's script)" in result.stdout
    assert "could not be read" not in result.stdout


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, ("--parser", "offical"), "no parser is called 'offical'"),
        ({}, ("--method", "vcd"), "holds no answer by the method 'vcd'"),
        ({}, ("--json", "{folder}/no/out.json"), "there is no folder"),
        ({}, ("--resamples", "-1"), "--resamples"),
        ({"answers": ANSWERS[:3]}, (), "1 of 4 questions have no answer, first 3"),
        ({"answers": []}, (), "holds no answer"),
        ({"answers": [{"id": 9, "answer": "no"}]}, (), "answers.json, entry 1: there is no question 9"),
        (
            {"questions": QUESTIONS[2:]},
            (),
            "qna.json, entry 1: a_00.png is an edited picture, but its original",
        ),
        ({"questions": [QUESTIONS[0] | {"gt": "?"}]}, (), "qna.json, entry 1: the right answer"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    refused: Callable[..., str],
    answers: Path,
    questions: Path,
    tmp_path: Path,
    change: dict[str, object],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    for path in (answers, questions):
        name = "answers" if path is answers else "questions"
        if name in change:
            path.write_text(json.dumps(change[name]))
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    out = tmp_path / "out.json"
    if "--json" not in filled:
        filled += ["--json", str(out)]
    assert message in refused("beaf", "score", answers, "-q", questions, *filled)
    assert not out.exists()


def test_missing_files(refused: Callable[..., str], questions: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused("beaf", "score", tmp_path / "gone.json", "-q", questions)
    assert "--questions" in refused("beaf", "score", questions)
