from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]

QUESTIONS = [
    (1, "a.jpg", "dog", "yes"),
    (2, "a.jpg", "cat", "no"),
    (3, "b.jpg", "bus", "yes"),
    (4, "b.jpg", "kite", "no"),
]


def lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def answers(path: Path, *texts: str) -> Path:
    return lines(path, *({"question_id": at, "text": text} for at, text in enumerate(texts, start=1)))


@pytest.fixture
def questions(tmp_path: Path) -> list[Path]:
    return [
        lines(
            tmp_path / f"coco_pope_{kind}.json",
            *(
                {
                    "question_id": at,
                    "image": image,
                    "text": f"Is there a {name} in the image?",
                    "label": label,
                }
                for at, image, name, label in QUESTIONS
            ),
        )
        for kind in ("random", "popular")
    ]


@pytest.fixture
def said(tmp_path: Path) -> list[Path]:
    return [
        answers(tmp_path / "r.jsonl", "Yes", "No", "There is one", "No"),
        answers(tmp_path / "p.jsonl", "Yes", "Yes", "Yes", "No"),
    ]


def row(output: str, name: str) -> list[str]:
    return next(line.split()[1:] for line in output.splitlines() if line.startswith(name))


def test_prints_splits_their_mean_and_what_could_not_be_read(
    run: Run, questions: list[Path], said: list[Path]
) -> None:
    result = run("pope", "score", *said, "-q", questions[0], "-q", questions[1])
    assert result.exit_code == 0, result.output
    assert "POPE, parser strict, 8 answers" in result.output
    assert row(result.output, "random") == ["75.0", "100.0", "50.0", "66.7", "25.0", "4", "1"]
    assert row(result.output, "popular") == ["75.0", "66.7", "100.0", "80.0", "75.0", "4", "0"]
    assert row(result.output, "mean") == ["75.0", "83.3", "75.0", "73.3", "50.0", "8", "1"]
    assert "random 3: 'There is one'" in result.output
    official = run("pope", "score", *said, "-q", questions[0], "-q", questions[1], "--parser", "official")
    assert row(official.output, "random")[-1] == "0"


def test_json_holds_fractions_counts_and_every_answer(
    run: Run, questions: list[Path], said: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    options = ("--json", out, "--compare-parsers", "--baseline", said[0], "--baseline", said[1])
    result = run("pope", "score", *said, "-q", questions[0], "-q", questions[1], *options)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text(encoding="utf-8"))
    assert (written["parser"], written["n"], written["resamples"], written["seed"]) == ("strict", 8, 1000, 0)
    random, popular = written["splits"]
    assert (random["split"], random["accuracy"], random["unparsed"], random["unparsed_yes"]) == (
        "random",
        0.75,
        1,
        1,
    )
    assert (popular["tp"], popular["fp"], popular["tn"], popular["fn"]) == (2, 1, 1, 0)
    assert random["answers"][2]["decision"] is None
    assert written["mean"]["f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert [entry["parser"] for entry in written["parsers"]][:2] == ["strict", "official"]
    assert all(entry["value"] == 0 for entry in written["difference_to_baseline"])
    assert "published" not in random
    run("pope", "score", said[0], "-q", questions[0], "--parser", "lmms_eval", "--json", out)
    (split,) = json.loads(out.read_text(encoding="utf-8"))["splits"]
    assert (split["yes_ratio"], split["published"]["yes_ratio"]) == (0.25, 0.5)


def test_every_parser_is_laid_beside_the_others(run: Run, questions: list[Path], said: list[Path]) -> None:
    result = run("pope", "score", said[0], "-q", questions[0], "--compare-parsers", "--resamples", 0)
    assert row(result.output, "strict") == ["75.0", "66.7", "25.0", "1"]
    assert row(result.output, "official") == ["100.0", "100.0", "50.0", "0", "1"]
    assert "bootstrap" not in result.output


def test_answers_that_failed_or_miss_are_said(run: Run, questions: list[Path], tmp_path: Path) -> None:
    path = lines(
        tmp_path / "answers.jsonl",
        {"id": "random/1", "image_id": "a.jpg", "answer": "Yes", "error": None, "method": "vcd"},
        {"id": "random/2", "image_id": "a.jpg", "answer": None, "error": "out of memory", "method": "vcd"},
        {"id": "random/1", "image_id": "a.jpg", "answer": "No", "error": None, "method": "greedy"},
    )
    result = run("pope", "score", path, "-q", questions[0], "--method", "vcd", "--partial")
    assert row(result.output, "random")[-2:] == ["1", "0"]
    assert "1 question could not be answered by the model and was not scored" in " ".join(
        result.output.split()
    )
    assert "2 questions have no answer and were not scored" in " ".join(result.output.split())


def test_an_answer_cannot_write_to_the_terminal(run: Run, questions: list[Path], tmp_path: Path) -> None:
    nasty = answers(tmp_path / "n.jsonl", "\x1b[31mred [bold]", "x" * 10_000_000, "\x00\x07", "No")
    result = run("pope", "score", nasty, "-q", questions[0])
    assert result.exit_code == 0, result.output
    assert "\x1b[31m" not in result.output
    assert "\\x1b[31mred [bold]" in result.output
    assert len(result.output) < 2000


def test_bad_input_is_one_line_and_leaves_the_old_file(
    refused: Callable[..., str], questions: list[Path], said: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    bad = tmp_path / "bad.json"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("nothing.jsonl", "-q", questions[0]), "cannot be read"),
        ((said[0], "-q", "nothing.json"), "cannot be read"),
        ((said[0],), "give the questions with --questions"),
        ((said[0], "-q", questions[0], "--parser", "strickt"), "did you mean 'strict'?"),
        ((said[0], "-q", questions[0], "-q", questions[1]), "stands in"),
        ((*said, "-q", questions[0]), "2 files of answers and 1 of questions"),
        ((questions[0], "-q", questions[0]), "give it with --questions"),
        ((said[0], "-q", questions[0], "--method", "vcd"), "by the method 'vcd'"),
        ((said[0], "-q", questions[0], "--resamples", -1), "resamples"),
        ((answers(tmp_path / "s.jsonl", "Yes"), "-q", questions[0]), "3 of 4 questions have no answer"),
    ]
    for content, words in (
        ("", "holds no answer"),
        ("{", "bad.json:1: is not JSON"),
        ('{"question_id": NaN, "text": "yes"}', "not NaN"),
        ('{"question_id": 7, "text": "yes"}', "no question 7"),
        ('{"question_id": "\\u001b[31m", "text": "yes"}', "no question '\\x1b[31m'"),
    ):
        bad.write_text(content)
        assert words in refused("pope", "score", bad, "-q", questions[0], "--json", out)
    for arguments, words in cases:
        assert words in refused("pope", "score", *arguments, "--json", out)
    assert "folder" in refused(
        "pope", "score", said[0], "-q", questions[0], "--json", tmp_path / "no" / "out.json"
    )
    assert out.read_text() == "old"


OBJECTS = [
    {"image": f"{at}.jpg", "objects": row.split()}
    for at, row in enumerate(("cat dog", "bus cat", "kite", "sofa bus"))
]


def test_built_questions_are_read_back_and_repeat_with_the_seed(run: Run, tmp_path: Path) -> None:
    objects = lines(tmp_path / "objects.jsonl", *OBJECTS)
    folders = [tmp_path / name for name in ("new/one", "two", "three")]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        result = run(
            "pope",
            "build",
            "--objects",
            objects,
            "--out",
            folder,
            "--limit",
            3,
            "--per-image",
            2,
            "--seed",
            seed,
        )
        assert result.exit_code == 0, result.output
        assert "3 of 3 pictures with 2 objects or more" in result.output
        assert "12 questions, 6 yes" in result.output
    first, again, other = ({path.name: path.read_text() for path in folder.iterdir()} for folder in folders)
    assert len(first) == 5
    assert first == again != other
    questions = folders[0] / "coco_pope_random.json"
    right = [json.loads(line)["label"] for line in questions.read_text().splitlines()]
    result = run("pope", "score", answers(tmp_path / "a.jsonl", *right), "-q", questions)
    assert row(result.output, "random")[:5] == ["100.0", "100.0", "100.0", "100.0", "50.0"]


def test_what_cannot_be_built_leaves_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    objects, out = lines(tmp_path / "objects.jsonl", *OBJECTS), tmp_path / "out"
    for arguments, words in (
        ((), "--annotations"),
        (("--objects", "nothing.json"), "cannot be read"),
        (("--objects", objects), "only 0 of 4 have 3 objects"),
        (("--objects", objects, "--limit", 4, "--per-image", 2), "only 3 of 4"),
        (("--objects", objects, "--limit", 1, "--per-image", 2), "only 0 are not in it"),
        (("--objects", objects, "--limit", 0), "limit"),
        (("--objects", objects, "--name", "a/b"), "--name"),
    ):
        assert words in refused("pope", "build", *arguments, "--out", out)
    assert not out.exists()
    assert "cannot make the folder" in refused(
        "pope", "build", "--objects", objects, "--limit", 3, "--per-image", 2, "--out", objects / "x"
    )


def test_help_names_both_commands(run: Run) -> None:
    result = run("pope")
    assert result.exit_code == 0
    assert "build" in result.stdout
    assert "score" in result.stdout


MME = "a.jpg\tA dog?\tYes\tyes\na.jpg\tA cat?\tNo\tyes\n"


def test_mme_tasks_are_scored_and_summed(run: Run, tmp_path: Path) -> None:
    first, second, out = tmp_path / "existence.txt", tmp_path / "count.txt", tmp_path / "out.json"
    first.write_text(MME)
    second.write_text(MME.replace("No\tyes", "No\tno"))
    result = run("mme", "score", first, second, "--json", out)
    assert result.exit_code == 0, result.output
    assert row(result.output, "existence") == ["50.0", "0.0", "50.0", "2", "1", "0"]
    assert row(result.output, "sum") == ["250.0"]
    written = json.loads(out.read_text())
    assert (written["score"], written["best"], written["parser"]) == (250, 400, "mme")
    assert [(task["task"], task["acc"], task["acc_plus"]) for task in written["tasks"]] == [
        ("existence", 0.5, 0),
        ("count", 1, 1),
    ]


def test_bad_mme_input_is_one_line(refused: Callable[..., str], tmp_path: Path) -> None:
    path, out = tmp_path / "existence.txt", tmp_path / "out.json"
    for content, words in (
        (b"", "holds no answer"),
        (b"\xff", "not UTF-8"),
        (b"a\tb\tc\td", "yes or no, not 'c'"),
    ):
        path.write_bytes(content)
        assert words in refused("mme", "score", path, "--json", out)
    path.write_text(MME)
    assert "did you mean 'mme'" in refused("mme", "score", path, "--parser", "nme")
    assert "cannot be read" in refused("mme", "score", tmp_path, "--json", out)
    assert not out.exists()
