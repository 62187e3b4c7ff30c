from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from keepsight.demo.splits import DEFAULT_METHODS
from keepsight.demo.world import scenes
from keepsight.errors import InputError
from keepsight.eval.chair.score import mentions

Run = Callable[..., Result]
Refused = Callable[..., str]
FEW = ("--limit", 4, "--batch", 2)
COST = {"seconds_per_answer", "tokens_per_second", "relative_seconds", "relative_tokens_per_second"}


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of the command go where the test can see whether they are left behind."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def result(run: Run, demo_model: Path, tmp_path: Path, temporary: Path) -> dict[str, Any]:
    file = tmp_path / "result.json"
    ran = run("demo", *FEW, "--json", file)
    assert ran.exit_code == 0, ran.output
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    assert not list(temporary.iterdir())
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_json_is_that_of_a_comparison(result: dict[str, Any]) -> None:
    bench = result["bench"]
    assert (result["model"], bench["name"], bench["split"], result["n"]) == (
        "demo",
        "chair",
        "test-shifted",
        4,
    )
    assert [row["method"] for row in result["methods"]] == ["greedy", *DEFAULT_METHODS]
    assert len(result["weights"]["sha256"]) == 64
    (ran,) = result["runs"]
    assert {"keepsight", "python", "torch", "transformers"} <= set(ran["versions"])
    # The folder was temporary, and naming it would mislead
    assert ran["folder"] is None
    for row in result["methods"]:
        assert row["folder"] is None
        for rate in ("chair_s", "chair_i", "recall"):
            figure = row["figures"][rate]
            low, high = figure["ci"]
            assert 0 <= low <= figure["value"] <= high <= 1
        assert row["cost"]["relative_seconds"] > 0
        assert row["figures"]["length"]["value"] > 0
    greedy, *others = result["methods"]
    assert greedy["cost"]["relative_seconds"] == 1
    assert greedy["differences"] is None
    for row in others:
        change = row["differences"]["chair_i"]["value"]
        assert change == pytest.approx(
            row["figures"]["chair_i"]["value"] - greedy["figures"]["chair_i"]["value"]
        )
        shorter = min(row["figures"]["mentions"]["value"], greedy["figures"]["mentions"]["value"])
        assert row["control"]["figures"]["mentions"]["value"] <= shorter


def test_the_run_is_kept_and_can_be_compared_again(run: Run, demo_model: Path, tmp_path: Path) -> None:
    """The figures follow from the captions in the folder."""
    folder = tmp_path / "run"
    ran = run("demo", *FEW, "--out", folder, "--json", tmp_path / "a.json")
    assert ran.exit_code == 0, ran.output
    assert f"The run is in {folder}" in ran.stdout
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["runs"][0]["folder"] == str(folder)
    truth = {scene.image_id: set(scene.names) for scene in scenes("test-shifted", 4)}
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    for row in found["methods"]:
        own = [one for one in answers if one["method"] == row["method"]]
        lied = [{m.object for m in mentions(one["answer"])} - truth[one["image_id"]] for one in own]
        assert row["figures"]["chair_s"]["value"] == sum(map(bool, lied)) / 4
    assert run("compare", folder, "--json", tmp_path / "b.json").exit_code == 0
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == found


def test_a_stopped_run_goes_on(run: Run, refused: Refused, demo_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("demo", *FEW, "--out", folder).exit_code == 0
    whole = (folder / "answers.jsonl").read_text(encoding="utf-8")
    kept = whole.splitlines(keepends=True)[:5]
    (folder / "answers.jsonl").write_text("".join(kept), encoding="utf-8")
    assert run("demo", *FEW, "--out", folder).exit_code == 0
    again = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:5] == kept
    assert len(again) == len(whole.splitlines())
    assert "was begun with" in refused("demo", *FEW, "--out", folder, "--seed", 1)


def test_the_same_seed_gives_the_same_result(
    run: Run, result: dict[str, Any], tmp_path: Path, demo_model: Path
) -> None:
    def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {**row, "cost": {key: value for key, value in row["cost"].items() if key not in COST}}
            for row in found["methods"]
        ]

    again, other = tmp_path / "again.json", tmp_path / "other.json"
    run("demo", *FEW, "--json", again)
    run("demo", *FEW, "--json", other, "--seed", 1)
    assert figures(json.loads(again.read_text())) == figures(result)
    assert json.loads(other.read_text())["bench"]["digest"] != result["bench"]["digest"]


def test_json_on_standard_output_stands_alone(run: Run, demo_model: Path) -> None:
    ran = run("demo", "--limit", 1, "--method", "m3id", "--json", "-")
    assert ran.exit_code == 0
    found = json.loads(ran.stdout)
    assert [row["method"] for row in found["methods"]] == ["greedy", "m3id"]


def test_a_method_that_is_off_equals_greedy(run: Run, demo_model: Path) -> None:
    ran = run("demo", *FEW, "--method", "vcd:alpha=0.0,beta=0.0,noise_step=999", "--json", "-")
    greedy, off = json.loads(ran.stdout)["methods"]
    assert off["figures"] == greedy["figures"]
    assert off["differences"]["chair_i"] == {
        "value": 0.0,
        "ci": [0.0, 0.0],
        "verdict": "no significant difference",
    }


def test_the_terminal_shows_marked_captions_and_the_tables(
    run: Run, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a machine slow enough, a line would say how far the run is
    monkeypatch.setattr("keepsight.cli._run_console.EVERY", float("inf"))
    ran = run("demo", *FEW, "--method", "vcd:alpha=3.0,beta=0.0", "--split", "val")
    assert ran.exit_code == 0
    assert ran.stderr == ""  # no progress bar where stderr is no terminal
    text = ran.stdout
    assert text.startswith("val: the pictures that settings are chosen on")
    for word in (
        "picture 1",
        "greedy",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "mentions",
        "cost",
        "1.00×",
        "greedy cut",
        "Difference to greedy",
        "n = 4",
    ):
        assert word in text
    assert "alpha=3.0" in text
    first = scenes("val", 1)[0]
    (line,) = [line for line in text.splitlines() if line.startswith("picture 1,")]
    assert line == f"picture 1, {first.context}: {', '.join(first.names)}"
    assert "[" in text.partition("CHAIR_s")[0]


def test_html_is_written(run: Run, demo_model: Path, tmp_path: Path) -> None:
    ran = run("demo", "--limit", 2, "--html", tmp_path / "page.html")
    assert ran.exit_code == 0
    assert f"wrote {tmp_path / 'page.html'}" in ran.stdout
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "vdc"), "no method 'vdc': did you mean 'vcd'?"),
        (("--method", "m3id:decoy=0.1"), "m3id has no parameter 'decoy': did you mean 'decay'?"),
        (("--method", "vcd:alpha=nan"), "vcd: alpha=nan must be a finite number, 0 or more"),
        (("--method", "m3id:cutoff=1.5"), "cutoff=1.5 must be a finite number from 0 to 1"),
        (("--method", "vcd:alpha=strong"), "alpha='strong' must be a number"),
        (("--method", "vcd", "--method", "vcd:alpha=1.0"), "listed twice"),
        (("--split", "test-shited"), "no split 'test-shited': did you mean 'test-shifted'"),
        (("--split", "train"), "no split 'train'"),
        (("--limit", "0"), "--limit"),
        (("--limit", "many"), "--limit"),
        (("--seed", "-1"), "--seed"),
        (("--batch", "0"), "--batch"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_bad_input_is_refused_at_once(refused: Refused, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("demo", *arguments)


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.usefixtures("no_model")
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    refused: Refused, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("kept")
    assert "there is no folder" in refused("demo", option, tmp_path / "missing" / "out")
    assert "there is no folder" in refused("demo", option, tmp_path / "file" / "out")
    assert "is a folder" in refused("demo", option, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("no_model")
def test_a_folder_with_something_else_is_refused_before_the_work(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "holds file and no run" in refused("demo", "--out", tmp_path)
    assert "is a file" in refused("demo", "--out", tmp_path / "file")


def test_a_run_that_fails_leaves_the_old_file(
    refused: Refused, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise InputError("half-way")

    monkeypatch.setattr("keepsight.experiments.runner.execute", fail)
    file = tmp_path / "result.json"
    file.write_text("old")
    assert refused("demo", "--json", file) == "error: half-way\n"
    assert file.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    assert not list(temporary.iterdir())
