from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standin import OBJECTS, standin
from typer.testing import Result

from keepsight import mitigate, parse
from keepsight.demo.world import scene
from keepsight.eval.chair.score import mentions
from keepsight.eval.modality_dominance.score import Reading

Run = Callable[..., Result]
Refused = Callable[..., str]
STRONG = "pai:alpha=3.0,gamma=1.0,first_layer=0"
SHORT = ("--max-new-tokens", 10)


def by_hand(picture: Image.Image, *specs: str) -> str:
    model, processor = standin()
    text = "USER: <image>\nDescribe this image. ASSISTANT:"
    inputs = processor(text=text, images=picture, return_tensors="pt", add_special_tokens=True)
    with mitigate(model, *map(parse, specs)):
        ids = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    return str(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


@pytest.fixture
def drawn(run: Run, tmp_path: Path) -> Callable[..., tuple[Result, Any, Image.Image]]:
    """Run the command; give back its result, its numbers and its figure."""

    def draw(image: object, *arguments: object) -> tuple[Result, Any, Image.Image]:
        out, numbers = tmp_path / "figure.png", tmp_path / "numbers.json"
        ran = run("attention", "demo", image, *SHORT, "--out", out, "--json", numbers, *arguments)
        assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "numbers.json"]
        with Image.open(out) as figure:
            assert figure.format == "PNG"
            return ran, json.loads(numbers.read_text(encoding="utf-8")), figure.copy()

    return draw


@pytest.mark.usefixtures("demo_model")
class TestOnTheDemoModel:
    def test_before_and_after(self, drawn: Any) -> None:
        ran, facts, figure = drawn("test-shifted:3", "--method", STRONG)
        shown = scene("test-shifted", 3)
        assert facts["present"] == sorted(shown.names)
        before, after = facts["maps"]
        assert (before["method"], after["method"]) == (None, parse(STRONG).spec)
        assert before["caption"] == by_hand(shown.image())
        assert after["caption"] == by_hand(shown.image(), STRONG)
        for one in (before, after):
            assert one["grid"] == [8, 8]
            assert [(w["word"], w["object"]) for w in one["words"]] == [
                (mention.word, mention.object) for mention in mentions(one["caption"])
            ]
            for word in one["words"]:
                assert word["present"] == (word["object"] in shown.names)
                assert word["share"] == pytest.approx(sum(map(sum, word["attention"])))
                assert (len(word["attention"]), len(word["attention"][0])) == (8, 8)
        mean = [sum(w["share"] for w in one["words"]) / len(one["words"]) for one in (before, after)]
        assert mean[1] > mean[0] + 0.05
        assert figure.mode == "RGB"
        assert figure.width == 1528
        assert "plain: " in ran.stdout
        assert facts["reading"] == Reading().to_json()
        for one in (before, after):
            shares = [token["image_share"] for token in one["tokens"]]
            assert "".join(token["text"] for token in one["tokens"]).strip() == one["caption"]
            for word in one["words"]:
                assert word["share"] == pytest.approx(
                    sum(shares[at] for at in word["tokens"]) / len(word["tokens"])
                )
            found = one["dominance"]
            assert found["counts"]["image"] == 64
            assert found["groups"]["all"]["image_share"]["value"] == pytest.approx(sum(shares) / len(shares))
            assert all(sum(layer.values()) == pytest.approx(1, abs=1e-4) for layer in found["attention"])
            text = sum(found["counts"][part] for part in facts["reading"]["text"])
            looked = found["attention"][0]
            on_text = sum(looked[part] for part in facts["reading"]["text"])
            assert found["layers"][0]["mdi"] == pytest.approx((on_text / text) / (looked["image"] / 64))
            told = f"{min(shares):.1%} to {max(shares):.1%}".replace("%", "").split(" to ")
            assert f"{told[0].strip()} to {told[1].strip()} %" in ran.stdout
        mdi = [one["dominance"]["groups"]["all"]["mdi"]["value"] for one in (before, after)]
        assert mdi[1] < mdi[0] - 0.1
        assert f"{mdi[0]:.2f}" in ran.stdout
        assert "text = bos+special+before+after" in ran.stdout
        assert ran.stdout.splitlines()[-1].startswith("figure: ")

    def test_one_row_without_a_method_and_nothing_struck_without_a_truth(
        self, drawn: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("pictures") / "one.png"
        scene("val", 0).image().save(path)
        ran, facts, alone = drawn(path)
        assert [one["method"] for one in facts["maps"]] == [None]
        assert facts["present"] is None
        assert {word["present"] for word in facts["maps"][0]["words"]} == {None}
        assert "[" not in ran.stdout
        both = drawn(path, "--method", STRONG)[2]
        assert both.height > alone.height + 216

    def test_told_objects_and_layers(self, drawn: Any) -> None:
        everything = drawn("val:0")[1]
        ran, facts, _ = drawn("val:0", "--objects", "Sofa, dog", "--layers", "3/2")
        assert (facts["present"], facts["layers"]) == (["couch", "dog"], [2, 3])
        [one], [other] = facts["maps"], everything["maps"]
        assert one["caption"] == other["caption"]
        assert [word["share"] for word in one["words"]] != [word["share"] for word in other["words"]]
        marked = [word["word"] for word in one["words"] if word["object"] not in {"couch", "dog"}]
        assert marked
        assert ran.stdout.count("[") == len(marked)

    def test_the_crop_that_was_seen_is_stated(
        self, drawn: Any, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("pictures") / "wide.png"
        scene("val", 0).image().resize((256, 128)).save(path)
        assert drawn(path)[1]["seen"] == [64, 0, 192, 128]

    def test_var_and_the_rings_take_the_same_dimensions(self, drawn: Any) -> None:
        _, facts, _ = drawn("val:0", "--method", "var:dims=3/70,tau=1.8,mass=0.0,ratio=0.0")
        for one in facts["maps"]:
            assert (one["sink_threshold"], one["sink_dims"]) == (1.8, [3, 70])
            assert one["sinks"]
            assert all(sink["score"] >= 1.8 for sink in one["sinks"])
        assert drawn("val:0")[1]["maps"][0]["sinks"] == []

    def test_layers_that_the_model_lacks(self, refused: Refused, tmp_path: Path) -> None:
        said = refused("attention", "demo", "val:0", "--layers", "9", "--out", tmp_path / "a.png")
        assert "layers 0 to 5, not 9" in said
        assert list(tmp_path.iterdir()) == []

    def test_var_without_dimensions(self, refused: Refused, tmp_path: Path) -> None:
        assert "dims" in refused("attention", "demo", "val:0", "--method", "var", "--out", tmp_path / "a.png")


def test_a_caption_without_objects(refused: Refused, tmp_path: Path) -> None:
    model, processor = standin()
    named = {i for word, i in processor.tokenizer.get_vocab().items() if word.split()[-1] in OBJECTS}
    model.generation_config.suppress_tokens = sorted({0, 1, 2, 3, len(processor.tokenizer) - 1} | named)
    model.save_pretrained(tmp_path / "mute")
    processor.save_pretrained(tmp_path / "mute")
    said = refused("attention", tmp_path / "mute", "val:0", *SHORT, "--out", tmp_path / "a.png")
    assert "no object of COCO is named in: " in said
    assert "--prompt" in said
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "no such picture: missing.png"),
        (["tset:3"], "no split 'tset'"),
        (["val:0", "--layers", "2,3"], "joined with /, such as 2/3"),
        (["val:0", "--objects", "dog,sofaa"], "did you mean 'sofa'?"),
        (["val:0", "--method", "pia"], "did you mean 'pai'?"),
        (["val:0", "--max-new-tokens", "0"], "max_new_tokens"),
        (["val:0", "--out", "figure.jpg"], "name figure.png instead"),
        (["val:0", "--out", "nowhere/figure.png"], "no folder nowhere"),
        (["val:0", "--json", "nowhere/figure.json"], "no folder nowhere"),
        (["val:0", "--calibration", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("attention", "demo", *arguments)
    assert list(tmp_path.iterdir()) == []
