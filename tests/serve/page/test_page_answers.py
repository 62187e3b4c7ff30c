"""What the page is told of an answer is what the library says of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import page_request
from PIL import Image
from starlette.testclient import TestClient

from keepsight import ground
from keepsight.analysis.attention_maps import look
from keepsight.demo.model import PROMPT
from keepsight.demo.world import ask as question_about
from keepsight.demo.world import scene
from keepsight.eval.chair.captions import Caption
from keepsight.eval.chair.score import score
from keepsight.inference.generation import answer
from keepsight.registry import parse
from keepsight.serve.page.service import PageService, segments
from keepsight.source.prompts import prepare

Ask = Callable[..., list[Any]]
M3ID = "m3id:decay=0.07,cutoff=0.02"


def data_uri(picture: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, format=kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("spec", ["", M3ID, "pai:alpha=0.9", f"vhr+{M3ID}"])
def test_an_answer_streams_and_its_words_are_those_of_ground(
    service: PageService, ask: Ask, spec: str
) -> None:
    queued, begun, *pieces, done = ask(method=spec)
    assert (queued, begun) == ({"event": "queued", "ahead": 0}, {"event": "begun"})
    assert {event["event"] for event in pieces} == {"piece"}
    assert len(pieces) > 5
    picture = scene("test-shifted", 1).image()
    [usual] = answer(service.model, service.processor, [picture], PROMPT, *filter(None, [spec]))
    assert done["text"] == usual.texts[0] == "".join(event["text"] for event in pieces).strip()
    assert done["method"] == ("+".join(parse(one).spec for one in spec.split("+") if one) or None)
    assert done["tokens"] == len(done["ids"]) == usual.lengths[0]
    found = ground(service.model, service.processor, picture, PROMPT, done["text"])
    assert done["words"]
    for told, word in zip(done["words"], found.words(), strict=True):
        assert (told["word"], told["object"]) == (word.word, word.object)
        assert told["present"] == (word.object in scene("test-shifted", 1).names)
        for name in ("support", "with_image", "without_image"):
            assert told[name] == pytest.approx(getattr(word, name), abs=1e-4)
    assert "".join(piece["text"] for piece in done["segments"]) == done["text"]
    numbered = [piece for piece in done["segments"] if piece["word"] is not None]
    assert [piece["word"] for piece in numbered] == list(range(len(done["words"])))
    assert [piece["text"] for piece in numbered] == [word["word"] for word in done["words"]]


def test_chair_is_that_of_the_scorer(ask: Ask) -> None:
    done = ask()[-1]
    shown = scene("test-shifted", 1)
    [row] = score([Caption(1, done["text"])], {1: shown.names}, resamples=0).captions
    chair = done["chair"]
    assert 0 < len(chair["invented"]) < chair["mentions"]
    assert (chair["chair_i"], chair["recall"]) == (row.chair_i, row.recall)
    assert chair["invented"] == [mention.object for mention in row.hallucinated]
    assert chair["found"] + len(chair["missed"]) == len(chair["present"]) == len(shown.names)
    assert chair["family"] == "pattern"


def test_a_yes_or_no_has_no_chair(ask: Ask) -> None:
    done = ask(question=question_about("cup"))[-1]
    assert done["text"] in ("Yes", "No")
    assert (done["chair"], done["words"]) == (None, [])


def test_an_uploaded_picture_answers_as_the_drawn_one_and_knows_no_truth(ask: Ask) -> None:
    drawn = ask()[-1]
    uploaded = ask(picture={"data": data_uri(scene("test-shifted", 1).image())})[-1]
    assert uploaded["text"] == drawn["text"]
    assert uploaded["chair"] is None
    assert {word["present"] for word in uploaded["words"]} == {None}
    assert [word["support"] for word in uploaded["words"]] == [word["support"] for word in drawn["words"]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP"])
def test_other_formats_and_shapes_are_taken(ask: Ask, kind: str) -> None:
    picture = scene("val", 2).image().resize((200, 90)).convert("CMYK" if kind == "JPEG" else "RGB")
    assert ask(picture={"data": data_uri(picture, kind)}, tokens=4)[-1]["event"] == "done"


def test_the_longest_answer_is_heeded_and_told(ask: Ask) -> None:
    done = ask(tokens=5)[-1]
    assert (done["tokens"], done["full"]) == (5, True)


def test_an_answer_that_cannot_be_judged_is_shown_all_the_same(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keepsight.errors import UnsupportedModel
    from keepsight.grounding import teacher_forcing as answering

    def judge(*arguments: Any) -> Any:
        raise UnsupportedModel("no second\nbranch")

    monkeypatch.setattr(answering, "judge", judge)
    done = ask()[-1]
    assert (done["unjudged"], done["words"]) == ("no second branch", [])
    assert done["segments"] == [{"text": done["text"], "word": None}]


@pytest.mark.parametrize("spec", ["", "pai:alpha=0.9"])
def test_maps_are_those_of_the_library(client: TestClient, service: PageService, ask: Ask, spec: str) -> None:
    done = ask(method=spec)[-1]
    again = client.post("/api/attention", json=page_request(method=spec, tokens=None, answer=done["ids"]))
    assert again.status_code == 200, again.text
    maps = again.json()
    inputs = prepare(service.processor, [scene("test-shifted", 1).image()], PROMPT)
    found = look(service.model, service.processor, inputs, *map(parse, filter(None, [spec])))
    assert (tuple(maps["grid"]), maps["box"]) == (found.grid, [0, 0, 128, 128])
    assert [word["word"] for word in maps["words"]] == [word["word"] for word in done["words"]]
    for told, word in zip(maps["words"], found.words, strict=True):
        assert told["attention"] == [pytest.approx(row, abs=1e-5) for row in word.attention]
        assert told["share"] == pytest.approx(word.share, abs=1e-4)
        assert told["top"] <= max(map(max, told["attention"]))
    assert maps["sinks"] == [[sink.row, sink.column] for sink in found.sinks]


def test_a_map_needs_an_object(client: TestClient) -> None:
    again = client.post("/api/attention", json=page_request(tokens=None, answer=[2]))
    assert again.status_code == 400
    assert again.json()["error"] == "the answer names no object, so there is nothing to map"


def test_a_model_whose_maps_cannot_be_laid_out_says_so(
    client: TestClient, service: PageService, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keepsight.analysis import attention_maps as attention_map
    from keepsight.analysis.image_grid import NoTokenGrid

    def no_grid(target: Any) -> Any:
        raise NoTokenGrid("tiles")

    ids = ask()[-1]["ids"]
    monkeypatch.setattr(attention_map, "token_grid", no_grid)
    again = client.post("/api/attention", json=page_request(tokens=None, answer=ids))
    assert (again.status_code, again.json()["error"]) == (400, "tiles")


def test_a_calibration_of_the_server_reaches_the_methods_that_read_one(
    service: PageService, tmp_path: Path
) -> None:
    from dataclasses import replace

    own = replace(service, calibration=tmp_path / "sinks.json")
    var, m3id = own._with_calibration((parse("var:ratio=0.7"), parse("m3id")))
    assert var == parse(f"var:ratio=0.7,calibration={tmp_path / 'sinks.json'}")
    assert m3id == parse("m3id")
    assert service._with_calibration((parse("var"),)) == (parse("var"),)


def test_facts_are_what_the_library_says(client: TestClient) -> None:
    from keepsight.grounding import SCORE, THRESHOLD, WEIGHT
    from keepsight.registry import methods

    facts = client.get("/api/facts").json()
    assert (facts["model"], facts["packaged"], facts["question"]) == ("demo", True, PROMPT)
    assert (facts["threshold"], facts["score"], facts["weight"]) == (THRESHOLD, SCORE, WEIGHT)
    assert [one["name"] for one in facts["methods"]] == list(methods())
    assert all(parse(one["spec"]).name() == one["name"] for one in facts["methods"])


def test_segments_put_the_text_together_again_whatever_letters_it_has() -> None:
    class Word:
        span = (2, 5)

    assert segments("🦊 cup, 🦊", [Word()]) == [  # type: ignore[list-item]
        {"text": "🦊 ", "word": None},
        {"text": "cup", "word": 0},
        {"text": ", 🦊", "word": None},
    ]
    assert segments("", []) == []
