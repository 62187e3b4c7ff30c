from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from keepsight.cli.demo import split_specs
from keepsight.demo.splits import DEFAULT_METHODS
from keepsight.demo.world import scenes
from keepsight.errors import InputError

Run = Callable[..., Result]
Refused = Callable[..., str]
FEW = ("--images", 4, "--batch", 2)


@pytest.fixture
def result(run: Run, demo_model: Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "result.json"
    ran = run("demo", *FEW, "--json", file, "--captions")
    assert ran.exit_code == 0, ran.output
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_json_holds_the_documented_keys(result: dict[str, Any]) -> None:
    assert (result["model"], result["split"], result["n"], result["seed"]) == ("demo", "test-shifted", 4, 0)
    assert [row["method"] for row in result["rows"]] == ["greedy", *DEFAULT_METHODS]
    assert len(result["weights_sha256"]) == 64
    assert {"keepsight", "python", "torch", "transformers"} <= set(result["versions"])
    for row in result["rows"]:
        for rate in ("chair_s", "chair_i", "recall"):
            low, high = row["ci"][rate]
            assert 0 <= low <= row[rate] <= high <= 1
        assert row["cost"] > 0
        assert row["length"] > 0
    greedy, *others = result["rows"]
    assert greedy["cost"] == 1
    assert "difference" not in greedy
    for row in others:
        change = row["difference"]["chair_i"]
        assert change["value"] == pytest.approx(row["chair_i"] - greedy["chair_i"])
        assert row["greedy_cut"]["mentions"] <= min(row["mentions"], greedy["mentions"])


def test_figures_follow_from_the_captions(result: dict[str, Any]) -> None:
    truth = {scene.image_id: set(scene.names) for scene in scenes("test-shifted", 4)}
    for row in result["rows"]:
        lied = 0
        for one in result["captions"]:
            assert set(one["objects"]) == truth[one["image_id"]]
            unsupported = one[row["method"]]["unsupported"]
            assert not set(unsupported) & truth[one["image_id"]]
            lied += bool(unsupported)
        assert row["chair_s"] == lied / 4


def test_the_same_seed_gives_the_same_result(
    run: Run, result: dict[str, Any], tmp_path: Path, demo_model: Path
) -> None:
    def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
        timed = {"seconds", "cost"}
        return [{key: value for key, value in row.items() if key not in timed} for row in found["rows"]]

    again, other = tmp_path / "again.json", tmp_path / "other.json"
    run("demo", *FEW, "--json", again, "--captions")
    run("demo", *FEW, "--json", other, "--captions", "--seed", 1)
    assert figures(json.loads(again.read_text())) == figures(result)
    assert json.loads(other.read_text())["captions"] != result["captions"]


def test_captions_stay_out_of_the_json_unless_asked_for(run: Run, demo_model: Path, tmp_path: Path) -> None:
    run("demo", "--images", 1, "--methods", "m3id", "--json", tmp_path / "a.json")
    assert "captions" not in json.loads((tmp_path / "a.json").read_text())


def test_the_terminal_shows_marked_captions_and_the_table(run: Run, demo_model: Path) -> None:
    ran = run("demo", *FEW, "--methods", "vcd:alpha=3.0,beta=0.0", "--split", "val")
    assert ran.exit_code == 0
    assert ran.stderr == ""  # no progress bar where nobody watches
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
        "1.0×",
        "greedy cut",
        "n = 4",
    ):
        assert word in text
    assert "alpha=3.0" in text
    first = scenes("val", 1)[0]
    (line,) = [line for line in text.splitlines() if line.startswith("picture 1,")]
    assert line == f"picture 1, {first.context}: {', '.join(first.names)}"
    assert "[" in text.partition("CHAIR_s")[0]


def test_html_is_written(run: Run, demo_model: Path, tmp_path: Path) -> None:
    ran = run("demo", "--images", 2, "--html", tmp_path / "page.html")
    assert ran.exit_code == 0
    assert f"wrote {tmp_path / 'page.html'}" in ran.stdout
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "vdc"), "no method 'vdc': did you mean 'vcd'?"),
        (("--methods", "m3id:decoy=0.1"), "m3id has no parameter 'decoy': did you mean 'decay'?"),
        (("--methods", "vcd:alpha=nan"), "vcd: alpha=nan must be a finite number, 0 or more"),
        (("--methods", "m3id:cutoff=1.5"), "cutoff=1.5 must be a finite number from 0 to 1"),
        (("--methods", "vcd:alpha=strong"), "alpha='strong' must be a number"),
        (("--split", "test-shited"), "no split 'test-shited': did you mean 'test-shifted'"),
        (("--split", "train"), "no split 'train'"),
        (("--images", "0"), "--images"),
        (("--images", "many"), "--images"),
        (("--seed", "-1"), "--seed"),
        (("--captions",), "--json"),
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


def test_a_run_that_fails_leaves_the_old_file(
    refused: Refused, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise InputError("half-way")

    monkeypatch.setattr("keepsight.experiments.demo_comparison.compare", fail)
    file = tmp_path / "result.json"
    file.write_text("old")
    assert refused("demo", "--json", file) == "error: half-way\n"
    assert file.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]


def test_a_method_listed_twice_is_refused(refused: Refused, demo_model: Path) -> None:
    assert "listed twice" in refused("demo", "--methods", "vcd,vcd:alpha=1.0")


@pytest.mark.parametrize(
    ("texts", "specs"),
    [
        (["vcd,m3id"], ["vcd", "m3id"]),
        (["vcd:alpha=2.0,beta=0.2,m3id:decay=0.05,cutoff=0.05"], ["vcd:alpha=2.0,beta=0.2", "m3id:decay=0.05,cutoff=0.05"]),
        (["m3id:gate=0.9", " vcd , m3id"], ["m3id:gate=0.9", "vcd", "m3id"]),
    ],
)  # fmt: skip
def test_commas_join_specs_and_parameters(texts: list[str], specs: list[str]) -> None:
    assert [method.spec for method in split_specs(texts)] == specs
