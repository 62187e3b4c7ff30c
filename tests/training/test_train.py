"""The training code: packed rows equal separate prompts, labels fall on the objects, an interrupted run resumes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from keepsight.demo.model import EOS, IMAGE, build_model
from keepsight.demo.world import NAMES, scene, scenes
from training.demo import train as training
from training.demo.train_data import GRID, NOTHING, Lines, Row, pack, patch_labels, train_tokenizer
from training.demo.train_stages import Recipe, token_losses
from training.demo.train_team import Team, fit


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(0)


def test_object_names_are_whole_tokens(tokenizer: Any) -> None:
    for name in NAMES:
        pieces = tokenizer.tokenize(f" {name}")
        assert len(pieces) == len(name.split())


def test_segments_of_a_packed_row_are_predicted_as_if_each_stood_alone(tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = build_model(len(tokenizer)).eval()
    lines = Lines(tokenizer)
    rng = np.random.default_rng(0)
    one = scene("train", 0)
    turns = [lines.describe(one, rng), *lines.ask(one, 2, rng)]
    rows = pack([(lines.image_prefix, [[turn] for turn in turns])])
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        seen = model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        features = model.model.multi_modal_projector(seen)
        packed = token_losses(model, rows, features)
        alone: dict[str, list[torch.Tensor]] = {"caption": [], "answer": []}
        for turn in turns:
            ids = torch.tensor([[*lines.image_prefix, *turn.prompt, *turn.answer]])
            logits = model(input_ids=ids, pixel_values=pixels).logits[0]
            log_p = logits[-len(turn.answer) - 1 : -1].log_softmax(-1)
            alone[turn.kind] += [-row[token] for row, token in zip(log_p, turn.answer, strict=True)]
    for kind, losses in alone.items():
        assert float(packed[kind]) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_a_blind_caption_has_the_prompt_of_the_image_with_its_tokens_dropped(tokenizer: Any) -> None:
    lines = Lines(tokenizer)
    one = scene("train", 3)
    seeing = [*lines.image_prefix, *lines.describe(one, np.random.default_rng(5)).prompt]
    blind = lines.describe(one, np.random.default_rng(5), blind=True).prompt
    assert [token for token in seeing if token != IMAGE] == blind


def test_every_learned_target_is_the_next_token_and_the_padding_teaches_nothing(tokenizer: Any) -> None:
    lines = Lines(tokenizer)
    rng = np.random.default_rng(1)
    talks: list[Row] = []
    for one in scenes("train", 3):
        talks.append(([], [[lines.describe(one, rng, blind=True), *lines.ask(one, 2, rng, user="USER: ")]]))
    rows = pack(talks)
    for kind, target in rows.targets.items():
        learned = target[:, :-1] != NOTHING
        assert (target[:, -1] == NOTHING).all()
        assert torch.equal(target[:, :-1][learned], rows.ids[:, 1:][learned])
        ends = {"caption": 1, "answer": 2}[kind]
        assert ((target == EOS).sum(1) == ends).all()


def test_patch_labels_lie_on_the_objects() -> None:
    for one in scenes("train", 20):
        labels = patch_labels(one).reshape(GRID, GRID, len(NAMES))
        assert {NAMES[kind] for kind in np.flatnonzero(labels.any((0, 1)))} == set(one.names)
        for placed in one.objects:
            x, y, width, height = placed.box
            rows, columns = np.nonzero(labels[..., NAMES.index(placed.name)])
            assert x - 16 < columns.min() * 16
            assert (columns.max() + 1) * 16 < x + width + 16
            assert y - 16 < rows.min() * 16
            assert (rows.max() + 1) * 16 < y + height + 16


def test_workers_end_with_the_mean_gradient() -> None:
    board, barrier = torch.zeros(2, 16), threading.Barrier(2)
    parameters = [[nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))] for _ in range(2)]
    for rank, own in enumerate(parameters):
        for parameter in own:
            parameter.grad = torch.full_like(parameter, float(rank + 1))
    team = [Team(rank, 2, torch.device("cpu"), barrier, board) for rank in range(2)]
    threads = [
        threading.Thread(target=each.average, args=(own,)) for each, own in zip(team, parameters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in parameters:
        for parameter in own:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, torch.full_like(parameter, 1.5))


def test_fit_finds_a_minimum_and_reports_its_losses() -> None:
    point = nn.Parameter(torch.tensor([3.0, -2.0]))
    history = fit(
        [point], lambda step: {"distance": (point - 1.0).pow(2).sum()}, {"distance": 1.0}, 300, 0.1, Team()
    )
    assert [entry["step"] for entry in history] == [50, 100, 150, 200, 250, 300]
    assert history[0]["distance"] > history[-1]["distance"]
    assert torch.allclose(point, torch.ones(2), atol=0.05)


def test_a_directory_of_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(training.RecipeChanged, match="another --out"):
        training.train(tmp_path, Recipe())


@pytest.mark.slow
def test_the_command_runs_resumes_and_gives_the_same_weights_again(tmp_path: Path) -> None:
    recipe = Recipe(
        scenes=64,
        mixed_scenes=16,
        check_scenes=8,
        vision_steps=3,
        text_steps=3,
        joint_steps=4,
        vision_batch=8,
        text_batch=4,
        joint_batch=4,
    )
    first = training.train(tmp_path / "first", recipe, threads=2)
    weights = (first / "model.safetensors").read_bytes()
    (tmp_path / "first" / "joint-timing.json").unlink()
    again = training.train(tmp_path / "first", recipe, threads=2)
    assert (again / "model.safetensors").read_bytes() == weights
    fresh = training.train(tmp_path / "second", recipe, threads=2)
    assert (fresh / "model.safetensors").read_bytes() == weights
