"""``keepsight dominance``: the figures it prints and writes are those of the functions, and bad input is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standin import standin
from typer.testing import Result

from keepsight import parse
from keepsight.analysis.modality_dominance import measure_all
from keepsight.cli._dominance import WIDEST, short, span, sparkline
from keepsight.demo.world import scenes
from keepsight.eval.modality_dominance.score import Reading
from keepsight.eval.modality_dominance.summary import Summary, difference, summary
from keepsight.inference.generation import Generation

Run = Callable[..., Result]
Refused = Callable[..., str]
STRONG = "pai:alpha=3.0,gamma=1.0,first_layer=0"
SHORT = ("--max-new-tokens", 4, "--limit", 3)


def by_hand(reading: Reading) -> tuple[Summary, Summary, Summary]:
    model, processor = standin()
    pictures = [scene.image() for scene in scenes("test", 3)]
    generation = Generation(max_new_tokens=4)
    plain, strong = (
        measure_all(model, processor, pictures, "Describe this image.", *way, generation=generation)
        for way in ((), (parse(STRONG),))
    )
    return summary(plain, reading), summary(strong, reading), difference(plain, strong, reading)


def check(found: Any, expected: Summary) -> None:
    assert found.keys() == expected.keys()
    for group, figures in expected.items():
        for name, estimate in figures.items():
            got = found[group][name]
            assert (got["value"], got["n"]) == (pytest.approx(estimate.value, rel=1e-4), estimate.n)
            assert got["ci"] == pytest.approx([estimate.low, estimate.high], rel=1e-3, abs=1e-5)


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_before_and_after(self, run: Run, tmp_path: Path) -> None:
        out, plot = tmp_path / "found.json", tmp_path / "found.png"
        ran = run("dominance", *SHORT, "--method", STRONG, "--json", out, "--plot", plot)
        assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.png"]
        with Image.open(plot) as figure:
            assert (figure.format, figure.width) == ("PNG", 1100)
        facts = json.loads(out.read_text(encoding="utf-8"))
        plain, strong, change = by_hand(Reading())
        before, after = facts["rows"]
        assert (facts["model"], facts["split"], facts["n"]) == ("demo", "test", 3)
        assert (before["method"], after["method"]) == (None, parse(STRONG).spec)
        check(before["groups"], plain)
        check(after["groups"], strong)
        check(after["difference"], change)
        assert "difference" not in before
        assert facts["reading"] == Reading().to_json()
        assert facts["layer_groups"]["middle"] == [2, 3]
        assert (before["counts"]["image"], before["counts"]["own"]) == (64, 1.5)
        assert [token["n"] for token in before["tokens"]] == [3] * 4
        assert len(before["layers"]) == 6
        assert (
            before["readings"][0]["groups"]["all"]["mdi"]["value"] == before["groups"]["all"]["mdi"]["value"]
        )
        for row in facts["rows"]:
            assert f"{row['groups']['late']['mdi']['value']:.2f}" in ran.stdout
        both = [f"{row['readings'][-1]['groups']['all']['mdi']['value']:.2f}" for row in facts["rows"]]
        assert " → ".join(both) in ran.stdout
        for said in (
            "n = 3 pictures",
            "text = bos+special+before+after",
            STRONG,
            "answers pooled",
            "change to plain",
        ):
            assert said in ran.stdout

    def test_a_reading_of_ones_own(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "found.json"
        options = ("--text", "after+own", "--heads", "each", "--average", "pooled", "--group", 3)
        ran = run("dominance", *SHORT, *options, "--json", out)
        assert ran.exit_code == 0, ran.output
        reading = Reading(text=("after", "own"), heads="each", average="pooled", group=3)
        facts = json.loads(out.read_text(encoding="utf-8"))
        assert facts["reading"] == reading.to_json()
        check(facts["rows"][0]["groups"], by_hand(reading)[0])
        assert "text = after+own; mean of the heads' figures; answers pooled" in ran.stdout
        assert "change" not in ran.stdout
        assert "→" not in ran.stdout

    def test_figures_without_a_denominator_are_null(self, run: Run, tmp_path: Path) -> None:
        """The stand-in's template has no marks, so that there is no text to speak of."""
        out = tmp_path / "found.json"
        ran = run("dominance", *SHORT, "--text", "special", "--method", STRONG, "--json", out)
        assert ran.exit_code == 0, ran.output
        for row in json.loads(out.read_text(encoding="utf-8"))["rows"]:
            assert row["groups"]["all"]["mdi"] == {"value": None, "ci": None, "n": 0}
            assert row["groups"]["all"]["aei_image"]["value"] == pytest.approx(1)
            assert row["layers"][0]["aei_text"] is None
        assert "Some figures are of 0 of the 3 pictures: in the others a denominator is zero." in ran.stdout
        assert "|T| = 0.0, |O| = 64.0 tokens" in ran.stdout

    def test_pictures_of_ones_own_and_one_alone_without_intervals(self, run: Run, tmp_path: Path) -> None:
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        scenes("test", 1)[0].image().save(pictures / "one.png")
        out = tmp_path / "found.json"
        ran = run("dominance", "demo", "--images", pictures, *SHORT, "--json", out)
        assert ran.exit_code == 0, ran.output
        facts = json.loads(out.read_text(encoding="utf-8"))
        assert (facts["images"], facts["n"]) == (str(pictures), 1)
        assert facts["rows"][0]["groups"]["all"]["mdi"]["ci"] is None
        assert "interval" not in ran.stdout


def test_another_model(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    scenes("test", 1)[0].image().save(tmp_path / "one.png")
    ran = run("dominance", checkpoint, "--images", tmp_path, *SHORT, "--text", "after")
    assert ran.exit_code == 0, ran.output
    assert "text = after" in ran.stdout


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["some/model"], "measuring some/model needs pictures"),
        (["--images", "nowhere"], "nowhere is no folder"),
        (["--images", "."], "no pictures in ."),
        (["--split", "tset"], "did you mean 'test'"),
        (["--images", ".", "--split", "test"], "--split names pictures of the demo world"),
        (["--method", "pia"], "did you mean 'pai'?"),
        (["--text", "image"], "text: no 'image'"),
        (["--text", "bso+after"], "did you mean 'bos'?"),
        (["--text", "bos+bos"], "none twice"),
        (["--text", ""], "text: no ''"),
        (["--heads", "max"], "heads: no 'max'"),
        (["--average", "pool"], "did you mean 'pooled'?"),
        (["--group", "0"], "group=0"),
        (["--limit", "0"], "limit"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--plot", "share.svg"], "name share.png instead"),
        (["--plot", "nowhere/share.png"], "no folder nowhere"),
        (["--json", "nowhere/found.json"], "no folder nowhere"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("dominance", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_sparklines() -> None:
    assert sparkline([0.1, 0.2, 0.3], 0.1, 0.3) == "▁▅█"
    assert sparkline([0.4, 0.4], 0.4, 0.4) == "▁▁"
    assert sparkline([0.0, 1.0], 0.2, 0.8) == "▁█"
    long = sparkline([0.0] * 100 + [1.0] * 100, 0, 1)
    assert len(long) <= WIDEST
    assert (long[0], long[-1]) == ("▁", "█")


def test_short_names() -> None:
    assert short("") == "plain"
    assert short("vhr:alpha=2.0+m3id") == "vhr+m3id"
    assert short("mypackage.methods:Mine:alpha=2.0+m3id") == "Mine+m3id"
    assert (span((3,)), span((0, 1, 2))) == ("3", "0–2")
