from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import asked, described, made
from typer.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., str]
CAT, BOTH = "A cat.", "A cat and a dog."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = described({image: ["cat"] for image in range(6)})
    said = {
        "greedy": [BOTH] * 6,
        "vcd:alpha=2.0,beta=0.02,noise_step=999": [CAT] * 5 + [None],
        "m3id": [BOTH] * 5 + [CAT],
    }
    return made(tmp_path / "run", items, said, seconds={"greedy": 1, "m3id": 2}).folder


class Tags(HTMLParser):
    """What a page opens and closes; fails where they do not match."""

    VOID = frozenset({"meta", "line", "circle"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


class TestOutput:
    def test_the_terminal(self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        ran = run("compare", folder)
        assert ran.exit_code == 0, ran.output
        assert ran.stderr == ""
        assert max(map(len, ran.stdout.splitlines())) <= 100
        lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
        assert (
            "n = 5 questions, 5 pictures; CHAIR, family pattern; 10,000 resamples of the pictures, seed 0."
            in lines
        )
        (greedy,) = [line for line in lines if line.startswith("greedy 100.0")]
        assert greedy == "greedy 100.0 50.0 100.0 66.7 6.0 2.0 1.00×"
        # Too wide for 100 columns: broken, not cut
        assert "…" not in ran.stdout
        (change,) = [line for line in lines if line.startswith("vcd: −100.0")]
        assert change == "vcd: −100.0 [−100.0, −50.0 [−50.0, −50.0] 0.0 [0.0, 0.0] −3.0 [−3.0, −3.0]"
        (same,) = [line for line in lines if line.startswith("m3id 0.0")]
        assert same == "m3id 0.0 [0.0, 0.0] 0.0 [0.0, 0.0] 0.0 [0.0, 0.0] 0.0 [0.0, 0.0]"
        assert "no significant" in ran.stdout
        words = " ".join(ran.stdout.split())
        assert "! Questions left out of all figures, since not every method answered them: 1 of 6." in words
        assert "! vcd:alpha=2.0,beta=0.02,noise_step=999: answers failed: 1, missing: 0" in words
        assert "may merely say less" in words

    def test_json_markdown_and_page(self, run: Run, folder: Path, tmp_path: Path) -> None:
        files = [tmp_path / name for name in ("a.json", "a.md", "a.html")]
        ran = run("compare", folder, "--json", files[0], "--markdown", files[1], "--html", files[2])
        assert ran.exit_code == 0, ran.output
        found = json.loads(files[0].read_text(encoding="utf-8"))
        assert (found["n"], found["left_out"], found["baseline"]) == (5, 1, "greedy")
        assert found["bootstrap"] == {"resamples": 10_000, "seed": 0, "level": 0.95, "unit": "picture"}
        greedy, vcd, m3id = found["methods"]
        assert greedy["differences"] is None
        assert vcd["differences"]["chair_i"] == {"value": -0.5, "ci": [-0.5, -0.5], "verdict": "lower"}
        assert m3id["differences"]["chair_i"]["verdict"] == "no significant difference"
        assert m3id["cost"]["relative_seconds"] == 2
        assert vcd["warnings"] == ["says_less"]
        table = files[1].read_text(encoding="utf-8")
        assert "| `m3id` | 100.0<br>100.0–100.0 | 50.0<br>50.0–50.0 |" in table
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 3  # three tables
        page = files[2].read_text(encoding="utf-8")
        tags = Tags(page)
        assert tags.seen.count("svg") == 2
        assert tags.seen.count("table") == 3
        assert tags.links == []
        assert "script" not in tags.seen
        assert "no significant difference" in page

    @pytest.mark.parametrize(
        ("option", "first"), [("--json", "{"), ("--markdown", "**"), ("--html", "<!doctype html>")]
    )
    def test_standard_output(self, run: Run, folder: Path, tmp_path: Path, option: str, first: str) -> None:
        shown, written = run("compare", folder, option, "-"), tmp_path / "file"
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert shown.stdout.startswith(first)
        assert run("compare", folder, option, written).exit_code == 0
        assert shown.stdout == written.read_text(encoding="utf-8")

    def test_markup_in_names_is_text(self, run: Run, tmp_path: Path) -> None:
        nasty = "<b>[red]x|y"
        folder = made(tmp_path / "run", described({1: ["cat"]}), {"greedy": [CAT], nasty: [CAT]}).folder
        ran = run("compare", folder, "--html", tmp_path / "a.html", "--markdown", tmp_path / "a.md")
        assert ran.exit_code == 0, ran.output
        assert "<b>[red]x|y" in ran.stdout
        assert "<b>" not in (tmp_path / "a.html").read_text(encoding="utf-8")
        Tags((tmp_path / "a.html").read_text(encoding="utf-8"))
        table = (tmp_path / "a.md").read_text(encoding="utf-8").splitlines()
        rows = [line for line in table if line.startswith("| `<b>[red]x")]
        assert len(rows) == 3
        assert all(row.startswith("| `<b>[red]x\\|y` | ") for row in rows)

    def test_pope(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "100")
        items = asked({"random": ["yes", "no"], "popular": ["yes", "no"]})
        said = {"greedy": ["Yes", "No", "Yes", "Yes"], "vcd": ["Yes", "No", "No way", "No"]}
        folder = made(tmp_path / "run", items, said, bench="pope").folder
        ran = run("compare", folder, "--html", tmp_path / "a.html")
        assert ran.exit_code == 0, ran.output
        for word in (
            "random",
            "popular",
            "yes",
            "unread",
            "could not be read as yes or no: 1.",
            "parser strict",
        ):
            assert word in " ".join(ran.stdout.split())
        read = run("compare", folder, "--parser", "official")
        assert "parser official" in read.stdout
        assert "could not be read" not in read.stdout


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--baseline", "gredy"), "did you mean 'greedy'"),
            (("--family", "patern"), "CHAIR has no family 'patern'"),
            (("--resamples", "-1"), "--resamples"),
            (("--seed", "x"), "--seed"),
            (("--json", "-", "--markdown", "-"), "is to be written twice"),
            (("--tuning", "nowhere"), "nowhere is no folder"),
            (("--ground-truth", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        ],
    )
    def test_options(self, refused: Refused, folder: Path, options: tuple[str, ...], words: str) -> None:
        assert words in refused("compare", folder, *options)

    def test_folders(self, refused: Refused, folder: Path, tmp_path: Path) -> None:
        assert "Missing argument" in refused("compare")
        assert "is no folder" in refused("compare", tmp_path / "missing")
        assert "given twice" in refused("compare", folder, folder)
        (folder / "answers.jsonl").write_text('{"id": 1}\n')
        assert "answers.jsonl:1: lacks" in refused("compare", folder)
        (folder / "answers.jsonl").write_text("")
        assert "no question that all methods answered" in refused("compare", folder)

    def test_pope_parser(self, refused: Refused, tmp_path: Path) -> None:
        folder = made(tmp_path / "run", asked({"random": ["yes"]}), {"greedy": ["Yes"]}, bench="pope").folder
        assert "no parser is called 'stric'" in refused("compare", folder, "--parser", "stric")

    @pytest.mark.parametrize("option", ["--json", "--markdown", "--html"])
    def test_a_file_that_cannot_be_written_is_refused_first(
        self, refused: Refused, folder: Path, tmp_path: Path, option: str
    ) -> None:
        assert "there is no folder" in refused("compare", folder, option, tmp_path / "missing" / "out")
