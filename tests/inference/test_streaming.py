"""Answers as they are written: the same text, stopped within a token, judged by the plain model, watched once more."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest
import torch

from keepsight.analysis.attention_maps import look
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scene
from keepsight.errors import InvalidParameter
from keepsight.grounding import GroundingRecorder
from keepsight.grounding.teacher_forcing import judge
from keepsight.inference.generation import Generation, answer
from keepsight.inference.streaming import stream_answer
from keepsight.registry import parse
from keepsight.source.prompts import prepare

M3ID = "m3id:decay=0.07,cutoff=0.02"
PICTURE = scene("test-shifted", 1).image()


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load()


def inputs_of(demo: tuple[Any, Any]) -> Any:
    return prepare(demo[1], [PICTURE], PROMPT)


@pytest.mark.parametrize("spec", [None, M3ID, "vcd:beta=0.02,noise_step=999", "pai:alpha=0.9", "vhr"])
def test_the_pieces_are_the_answer_of_generate(demo: tuple[Any, Any], spec: str | None) -> None:
    recipes = [spec] if spec else []
    pieces: list[str] = []
    written = stream_answer(*demo, inputs_of(demo), *recipes, on_text=pieces.append)
    [usual] = answer(*demo, [PICTURE], PROMPT, *recipes)
    assert written.text == usual.texts[0]
    assert "".join(pieces).strip() == written.text
    assert len(pieces) > 5
    assert len(written.ids) == usual.lengths[0]
    assert not written.stopped
    assert not written.full


def test_sampling_starts_from_its_seed_and_leaves_the_random_state(demo: tuple[Any, Any]) -> None:
    hot = {"sample": True, "temperature": 3.0, "max_new_tokens": 12}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    texts = [
        stream_answer(
            *demo, inputs_of(demo), on_text=lambda _: None, generation=Generation(seed=seed, **hot)
        ).text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_stop_ends_it_within_a_token_and_leaves_the_model_as_it_was(demo: tuple[Any, Any]) -> None:
    whole = stream_answer(*demo, inputs_of(demo), M3ID, on_text=lambda _: None)
    stop, pieces = Event(), []

    def say(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            stop.set()

    cut = stream_answer(*demo, inputs_of(demo), M3ID, on_text=say, stop=stop)
    assert cut.stopped
    assert 3 <= len(cut.ids) <= 6
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert stream_answer(*demo, inputs_of(demo), M3ID, on_text=lambda _: None).ids == whole.ids


def test_the_longest_answer_is_told_from_a_finished_one(demo: tuple[Any, Any]) -> None:
    cut = stream_answer(
        *demo, inputs_of(demo), on_text=lambda _: None, generation=Generation(max_new_tokens=4)
    )
    assert (cut.full, cut.stopped, len(cut.ids)) == (True, False, 4)


def test_an_error_while_it_is_said_goes_to_the_caller_and_changes_nothing(demo: tuple[Any, Any]) -> None:
    def fail(piece: str) -> None:
        raise BrokenPipeError(piece)

    whole = stream_answer(*demo, inputs_of(demo), on_text=lambda _: None)
    with pytest.raises(BrokenPipeError):
        stream_answer(*demo, inputs_of(demo), "vhr:alpha=3", M3ID, on_text=fail)
    assert stream_answer(*demo, inputs_of(demo), on_text=lambda _: None).ids == whole.ids


def test_beams_are_refused(demo: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidParameter, match="num_beams=2"):
        stream_answer(*demo, inputs_of(demo), on_text=lambda _: None, generation=Generation(num_beams=2))


def test_the_judge_is_what_a_recorder_hears_of_the_plain_model(demo: tuple[Any, Any]) -> None:
    model, processor = demo
    inputs = inputs_of(demo)
    recorder = GroundingRecorder(model, inputs)
    [heard] = recorder.read(model.generate(**inputs, logits_processor=[recorder]), processor)
    written = stream_answer(model, processor, inputs, on_text=lambda _: None)
    judged = judge(model, processor, inputs, written.ids)
    assert judged.text == heard.text == written.text
    for one, other in zip(judged.words(), heard.words(), strict=True):
        assert one.support == pytest.approx(other.support, abs=1e-4)


@pytest.mark.parametrize("spec", [None, "pai:alpha=0.9", M3ID])
def test_a_map_of_an_answer_is_the_map_of_its_generation(demo: tuple[Any, Any], spec: str | None) -> None:
    recipes = [parse(spec)] if spec else []
    inputs = inputs_of(demo)
    written = stream_answer(*demo, inputs, *recipes, on_text=lambda _: None)
    afterwards = look(*demo, inputs, *recipes, answer=written.ids)
    live = look(*demo, inputs, *recipes)
    assert afterwards.caption.strip() == written.text
    assert afterwards.words == live.words
    assert afterwards.sinks == live.sinks


def test_a_map_can_be_of_words_that_the_model_would_not_say(demo: tuple[Any, Any]) -> None:
    ids = demo[1].tokenizer(" A dog and a car.", add_special_tokens=False).input_ids
    seen = look(*demo, inputs_of(demo), answer=ids)
    assert seen.caption.strip() == "A dog and a car."
    assert [word.object for word in seen.words] == ["dog", "car"]
