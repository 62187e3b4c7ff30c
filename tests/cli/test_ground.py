from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from keepsight import ground, mitigate, parse
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scene
from keepsight.grounding import THRESHOLD, Nouns
from keepsight.source.prompts import prepare

Run = Callable[..., Result]
Refused = Callable[..., str]


def lines(run: Run, *arguments: object) -> list[Any]:
    ran = run("ground", "demo", *arguments, "--json", "-")
    assert (ran.exit_code, ran.stderr) == (0, ""), ran.output
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_json_holds_what_the_library_says(run: Run) -> None:
    [one, other] = lines(run, "test-shifted:1", "val:0")
    model, processor = load()
    for line, name in ((one, "test-shifted:1"), (other, "val:0")):
        split, index = name.split(":")
        shown = scene(split, int(index))
        found = ground(model, processor, shown.image(), PROMPT, line["caption"])
        assert line["image"] == line["image_id"] == name
        assert (line["method"], line["model"], line["prompt"]) == (None, "demo", PROMPT)
        assert (line["score"], line["aggregate"], line["weight"]) == ("contrast", "mean", 0.5)
        assert line["threshold"] == THRESHOLD
        words = found.words()
        assert words
        for word, got in zip(words, line["words"], strict=True):
            assert (got["word"], got["object"], got["span"]) == (word.word, word.object, list(word.span))
            assert line["caption"][slice(*got["span"])] == got["word"]
            assert got["support"] == pytest.approx(word.support, abs=1e-4)
            assert got["difference"] == pytest.approx(got["with_image"] - got["without_image"])
            assert got["flagged"] == (word.support < THRESHOLD)
            assert got["present"] == (word.object in shown.names)
        for token, got in zip(found.tokens, line["tokens"], strict=False):
            assert got["text"] == line["caption"][slice(*got["span"])]
            assert (got["id"], got["with_image"]) == (token.id, pytest.approx(token.with_image, abs=1e-4))
        assert "".join(got["text"] for got in line["tokens"]) == line["caption"]


def test_the_table_marks_what_is_flagged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    [line] = lines(run, "test-shifted:1")
    shown = run("ground", "demo", "test-shifted:1").stdout
    flagged = [word for word in line["words"] if word["flagged"]]
    assert flagged
    assert len(flagged) < len(line["words"])
    assert shown.splitlines()[0] == "test-shifted:1"
    for word in line["words"]:
        assert (f"[{word['word']}]" in shown) == (word in flagged)
        [row] = [row.split() for row in shown.splitlines() if row.split()[:1] == [word["word"]]]
        figures = [word["with_image"], word["without_image"], word["difference"], word["support"]]
        assert [float(cell.replace("−", "-")) for cell in row[1:5]] == pytest.approx(figures, abs=0.0051)
        assert ("flagged" in row) == word["flagged"]
        assert row[-1] == ("yes" if word["present"] else "no")
    assert "chosen on the demo world; for another model choose your own" in shown


def test_captions_of_a_method_are_judged_by_the_plain_model(run: Run) -> None:
    spec = "m3id:decay=0.3,cutoff=0.0"
    changed = 0
    for line in lines(run, "val-shifted:1", "val-shifted:4", "--method", spec, "--max-new-tokens", "20"):
        model, processor = load()
        picture = scene("val-shifted", int(line["image"].split(":")[1])).image()
        inputs = prepare(processor, [picture], PROMPT)
        texts = []
        for recipes in ([], [parse(spec)]):
            with mitigate(model, *recipes):
                ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
            ids = ids[0, inputs["input_ids"].shape[1] :]
            texts.append(processor.decode(ids, skip_special_tokens=True).strip())
        assert (line["caption"], line["method"]) == (texts[1], parse(spec).spec)
        changed += texts[0] != texts[1]
        words = ground(model, processor, picture, PROMPT, line["caption"]).words()
        assert [word["support"] for word in line["words"]] == pytest.approx(
            [word.support for word in words], abs=1e-4
        )
    assert changed


def test_a_given_caption_with_words_of_ones_own(run: Run, tmp_path: Path) -> None:
    picture, nouns = tmp_path / "COCO_val2014_000000000042.png", tmp_path / "nouns.txt"
    scene("val", 0).image().save(picture)
    nouns.write_text("umbrella\n\nstreet light\n")
    given = ("--caption", " Umbrellas by two street lights. ", "--threshold", "-3")
    [line] = lines(run, picture, *given, "--words", nouns)
    assert line == lines(run, picture, *given, "--words", "umbrella, street light")[0]
    assert (line["image_id"], line["caption"]) == (42, "Umbrellas by two street lights.")
    model, processor = load()
    found = ground(model, processor, scene("val", 0).image(), PROMPT, line["caption"])
    words = found.words(Nouns.of(["umbrella", "street light"]))
    assert [word.word for word in words] == ["Umbrellas", "street lights"]
    for word, got in zip(words, line["words"], strict=True):
        assert (got["object"], got["flagged"]) == (word.object, word.support < -3)
        assert got["support"] == pytest.approx(word.support, abs=1e-3)
        assert got["present"] is None


def test_without_a_threshold_of_its_own_a_score_flags_nothing(run: Run) -> None:
    [line] = lines(run, "test-shifted:1", "--score", "difference")
    assert line["threshold"] is None
    assert {word["flagged"] for word in line["words"]} == {None}
    assert [word["support"] for word in line["words"]] == pytest.approx(
        [word["difference"] for word in line["words"]]
    )
    shown = run("ground", "demo", "test-shifted:1", "--aggregate", "min").stdout
    assert "flagged" not in shown.split("No word is flagged")[0]
    assert "give --threshold" in shown
    assert "[" not in shown


def test_a_caption_without_object_words(run: Run) -> None:
    assert lines(run, "val:0", "--caption", "A street.")[0]["words"] == []
    assert "no object word" in run("ground", "demo", "val:0", "--caption", "A street.").stdout


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "no such picture: missing.png"),
        (["tset:3"], "no split 'tset'"),
        (["val:0", "--method", "m3di"], "did you mean 'm3id'?"),
        (["val:0", "--score", "contrasts"], "did you mean 'contrast'?"),
        (["val:0", "--aggregate", "product"], "known: first, mean, min, sum"),
        (["val:0", "--threshold", "nan"], "must be a finite number"),
        (["val:0", "--max-new-tokens", "0"], "max_new_tokens"),
        (["val:0", "--words", ""], "the list of nouns is empty"),
        (["val:0", "--words", "nouns.txt"], "'nouns.txt' is no noun"),
        (["val:0", "--words", "binary"], "cannot read binary as a text"),
        (["val:0", "--caption", "  "], "--caption is empty"),
        (["val:0", "val:1", "--caption", "A dog."], "leave out the other pictures"),
        (["val:0", "--method", "m3id", "--caption", "A dog."], "leave out the other pictures and --method"),
        (["val:0", "--calibration", "missing.json", "--method", "var"], "missing.json"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert message in refused("ground", "demo", *arguments)


@pytest.mark.usefixtures("demo_model")
def test_a_caption_that_the_tokenizer_cannot_write(refused: Refused) -> None:
    # The stand-in's tokenizer knows a few words only
    assert "reads the caption as" in refused("ground", "demo", "val:0", "--caption", "a unicorn")
