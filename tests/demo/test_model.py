"""The packaged demo checkpoint: loads through the Auto classes, knows its prompt, describes what it sees."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from keepsight.demo import model as demo
from keepsight.demo.model import IMAGE, IMAGE_TOKENS, PROMPT, WEIGHTS
from keepsight.demo.world import scene, scenes
from keepsight.eval.chair.score import mentions
from training.demo.train_data import Lines

TURN = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return demo.load()


@pytest.fixture(scope="module")
def log() -> dict[str, Any]:
    record: dict[str, Any] = json.loads((WEIGHTS / "training-log.json").read_text())
    return record


def test_the_weights_are_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 8_000_000


def test_the_auto_classes_load_the_directory_without_torchvision() -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.dtype == torch.float16
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    if importlib.util.find_spec("torchvision") is None:
        assert type(processor.image_processor).__name__ == "LlavaImageProcessorPil"


def test_load_gives_an_evaluation_model_of_the_asked_type(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    assert model.dtype == torch.float32
    assert not model.training
    assert model.generation_config.eos_token_id == demo.EOS
    assert model.generation_config.pad_token_id == demo.PAD
    assert model.generation_config.max_new_tokens == 64
    assert not model.generation_config.do_sample


def test_a_missing_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    with pytest.raises(demo.WeightsMissing, match="reinstall"):
        demo.load()


def test_the_chat_template_gives_the_training_ids(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    prompt = processor.apply_chat_template(TURN, add_generation_prompt=True)
    assert prompt == f"USER: <image>\n{PROMPT} ASSISTANT:"
    inputs = processor(text=[prompt], images=[scene("val", 0).image()], return_tensors="pt")
    lines = Lines(processor.tokenizer)
    taught = [
        *lines.image_prefix,
        *processor.tokenizer.encode(f"{PROMPT} ASSISTANT:", add_special_tokens=False),
    ]
    assert inputs.input_ids[0].tolist() == taught
    assert taught.count(IMAGE) == IMAGE_TOKENS == 64


def test_the_chat_template_continues_a_conversation_and_refuses_other_roles(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    turns = [
        *TURN,
        {"role": "assistant", "content": "A kitchen with an oven."},
        {"role": "user", "content": "Is there a dog in the image?"},
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        f"USER: <image>\n{PROMPT} ASSISTANT: A kitchen with an oven.</s>"
        "USER: Is there a dog in the image? ASSISTANT:"
    )
    with pytest.raises(Exception, match="user and assistant only"):
        processor.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_the_processor_gives_the_pixels_of_the_training(loaded: tuple[Any, Any]) -> None:
    _, processor = loaded
    picture = scene("val", 1).image()
    pixels = processor.image_processor(picture, return_tensors="pt").pixel_values[0]
    taught = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1.0
    assert torch.allclose(pixels, taught, atol=1e-6)


def test_greedy_captions_name_objects_that_are_there(loaded: tuple[Any, Any]) -> None:
    from training.demo.train_score import describe

    picked = scenes("val", 8)
    for one, written in zip(picked, describe(*loaded, picked), strict=True):
        named = {mention.object for mention in mentions(written.caption)}
        assert named & set(one.names), written.caption
        assert written.caption.endswith(".")


def test_the_checkpoint_scores_what_its_log_says(loaded: tuple[Any, Any], log: dict[str, Any]) -> None:
    """A fresh score on a slice lies within four standard errors of the logged figure of the whole."""
    from keepsight.eval.chair import score as chair
    from training.demo.train_score import describe

    picked = scenes("val", 60)
    report = chair.score(describe(*loaded, picked), {one.image_id: one.names for one in picked}, resamples=0)
    logged = log["scores"]["val"]["recall"]["value"]
    assert report.recall == pytest.approx(logged, abs=0.08)


def test_the_model_card_states_the_figures_of_the_log(log: dict[str, Any]) -> None:
    card = (WEIGHTS / "MODEL_CARD.md").read_text()
    rows = {
        cells[1]: cells[2:]
        for cells in (re.split(r"\s*\|\s*", line) for line in card.splitlines())
        if len(cells) > 6
    }
    for split in ("val", "val-shifted", "test", "test-shifted"):
        scored = log["scores"][split]
        expected = [str(scored["n"])] + [
            "{:.1f} [{:.1f}, {:.1f}]".format(
                *(100 * figure for figure in (scored[name]["value"], *scored[name]["interval"]))
            )
            for name in ("chair_s", "chair_i", "recall")
        ]
        assert rows[f"`{split}`"][:4] == expected
    for stage in ("scenes", "vision", "text", "joint"):
        spent = log["stages"][stage]
        assert rows[f"`{stage}`"][0] == f"{spent['wall_seconds']:.0f}"
        assert rows[f"`{stage}`"][1] == f"{spent['cpu_seconds']:.0f}"


def test_the_training_stayed_within_its_budget(log: dict[str, Any]) -> None:
    assert log["threads"] == 2
    assert log["device"] == "cpu"
    assert log["wall_seconds"] <= 40 * 60
    assert set(log["stages"]) == {"scenes", "vision", "text", "joint"}
