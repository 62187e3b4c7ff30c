"""The three training stages of the demo model: vision tower, language model, and both together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from keepsight.demo.model import IMAGE, build_model
from keepsight.demo.world import NAMES, scene
from training.demo.train_data import NOTHING, Lines, Pictures, Row, Rows, pack
from training.demo.train_team import Team, fit


@dataclass(frozen=True)
class Recipe:
    """Every number of the recipe. A batch is divided among the workers."""

    seed: int = 0
    scenes: int = 26_000
    mixed_scenes: int = 8_000
    check_scenes: int = 400
    vision_steps: int = 1000
    vision_batch: int = 96
    vision_rate: float = 1e-3
    vision_mixed_share: float = 0.25
    text_steps: int = 300
    text_batch: int = 32
    text_rate: float = 2e-3
    joint_steps: int = 2000
    joint_batch: int = 24
    joint_rate: float = 1.5e-3
    joint_questions: int = 4
    joint_blind: int = 2
    mixed_share: float = 0.15
    noisy_share: float = 0.06
    answer_weight: float = 0.5


def train_vision(team: Team, recipe: Recipe, out: Path) -> None:
    """Stage 1: the tower learns which categories lie in each patch (28 logistic losses per patch).

    A share of the pictures comes from ``train-mixed``, so the language model learns the habits of the scenes rather
    than the tower.
    """
    torch.manual_seed(recipe.seed + 1)
    # Only the tower of this model is used, so the size of its vocabulary does not matter.
    tower = build_model(len(NAMES) + 4).model.vision_tower.to(team.device)
    linear = nn.Linear(128, len(NAMES))
    # Hardly any category lies in a given patch. A probability of 2 % at
    # the start keeps the first steps from learning just that.
    nn.init.constant_(linear.bias, -4.0)
    head = nn.Sequential(nn.LayerNorm(128), linear).to(team.device)
    usual, mixed = Pictures(out / "data", "train"), Pictures(out / "data", "train-mixed")

    def patch_logits(pixels: Tensor) -> Tensor:
        # The first state is the class token, which belongs to no patch.
        states = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        logits: Tensor = head(states)
        return logits

    def losses_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 1, step])
        others = round(recipe.vision_mixed_share * recipe.vision_batch)
        pixels, labels = [], []
        for pictures, pool, n in (
            (usual, recipe.scenes, recipe.vision_batch - others),
            (mixed, recipe.mixed_scenes, others),
        ):
            # All workers draw the same batch, and each takes its own part of it.
            picked = rng.integers(pool, size=n)[team.rank :: team.size].tolist()
            pixels.append(pictures.batch(picked, team.device))
            labels.append(torch.from_numpy(pictures.labels[picked]).to(team.device).float())
        return {
            "patches": binary_cross_entropy_with_logits(patch_logits(torch.cat(pixels)), torch.cat(labels))
        }

    # post_layernorm acts on the class token alone, which nothing here reads, so it gets no gradient.
    learned = [p for name, p in tower.named_parameters() if "post_layernorm" not in name]
    history = fit(
        [*learned, *head.parameters()],
        losses_at,
        # The loss is a mean over categories; with this weight it is the sum of 28 losses for each patch.
        {"patches": 28.0},
        recipe.vision_steps,
        recipe.vision_rate,
        team,
    )
    # After averaged gradients all workers hold the same weights, so one of them checks and saves.
    if team.rank:
        return
    checks = Pictures(out / "data", "val")
    with torch.no_grad():
        indices = range(recipe.check_scenes)
        # A category counts as found in a picture if any patch has a logit above 0, which is a probability above one half.
        found = patch_logits(checks.batch(indices, team.device)).amax(1).gt(0).cpu()
    there = torch.from_numpy(checks.labels[list(indices)]).amax(1).bool()
    hits = int((found & there).sum())
    checked = {
        "val_precision": round(hits / int(found.sum()), 4) if found.any() else None,
        "val_recall": round(hits / int(there.sum()), 4),
    }
    _keep(out, "vision", tower.state_dict(), {"losses": history, **checked})


def train_text(team: Team, recipe: Recipe, out: Path) -> None:
    """Stage 2: the language model learns captions and questions about a caption, from text alone."""
    lines = load_lines(out)
    torch.manual_seed(recipe.seed + 2)
    model = build_model(lines.vocabulary).to(team.device)

    def losses_at(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 2, step])
        picked = rng.integers(recipe.scenes, size=(recipe.text_batch, 2))
        rows: list[Row] = []
        for alone, talked in picked.tolist()[team.rank :: team.size]:
            one, other = scene("train", alone, recipe.seed), scene("train", talked, recipe.seed)
            # Without a picture, questions can be answered from a caption alone, which therefore precedes them.
            talk = [lines.describe(other, rng, blind=True), *lines.ask(other, 3, rng, user="USER: ")]
            rows.append(([], [[lines.describe(one, rng, blind=True)], talk]))
        return token_losses(model, pack(rows).to(team.device), None)

    weights = {"caption": 1.0, "answer": recipe.answer_weight}
    learned = list(model.model.language_model.parameters())
    history = fit(learned, losses_at, weights, recipe.text_steps, recipe.text_rate, team)
    if team.rank == 0:
        _keep(out, "text", model.model.language_model.state_dict(), {"losses": history})


def train_joint(team: Team, recipe: Recipe, out: Path) -> None:
    """Stage 3: projector and language model learn captions and answers about pictures; the tower is frozen.

    Every image row carries one caption and some single questions. Beside them a few captions without any image
    keep the language prior alive. Some pictures carry strong noise. A share of the scenes comes from
    ``train-mixed``.
    """
    lines = load_lines(out)
    torch.manual_seed(recipe.seed + 3)
    model = assemble(lines.vocabulary, out).to(team.device)
    model.model.vision_tower.requires_grad_(False)
    usual, mixed = Pictures(out / "data", "train"), Pictures(out / "data", "train-mixed")

    def losses_at(step: int) -> dict[str, Tensor]:
        # Each worker draws its own part of the batch here, since wording and noise are drawn along with it.
        rng = np.random.default_rng([recipe.seed, 3, step, team.rank])
        rows: list[Row] = []
        pixels = []
        for _ in range(recipe.joint_batch // team.size):
            other = rng.random() < recipe.mixed_share
            index = int(rng.integers(recipe.mixed_scenes if other else recipe.scenes))
            one = scene("train-mixed" if other else "train", index, recipe.seed)
            pixels.append((mixed if other else usual).batch([index], team.device))
            asked = [[turn] for turn in lines.ask(one, recipe.joint_questions, rng)]
            rows.append((lines.image_prefix, [[lines.describe(one, rng)], *asked]))
        # Captions without a picture are what contrastive methods ask the amateur for.
        blind = [
            scene("train", int(i), recipe.seed) for i in rng.integers(recipe.scenes, size=recipe.joint_blind)
        ]
        rows.append(([], [[lines.describe(one, rng, blind=True)] for one in blind]))
        pictures = _with_noise(torch.cat(pixels), recipe.noisy_share, rng)
        # The tower is frozen, so nothing has to be kept for its gradients.
        with torch.no_grad():
            seen = model.model.vision_tower(pixel_values=pictures).last_hidden_state[:, 1:]
        return token_losses(model, pack(rows).to(team.device), model.model.multi_modal_projector(seen))

    weights = {"caption": 1.0, "answer": recipe.answer_weight}
    learned = [p for p in model.parameters() if p.requires_grad]
    history = fit(learned, losses_at, weights, recipe.joint_steps, recipe.joint_rate, team)
    if team.rank == 0:
        # The head shares its tensor with the embeddings, and safetensors refuses to write one tensor under two names.
        state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
        _keep(out, "joint", state, {"losses": history})


def token_losses(model: Any, rows: Rows, features: Tensor | None) -> dict[str, Tensor]:
    """Returns the mean cross-entropy per learned token, by kind.

    Args:
        model: the model, of which language model and head are used.
        rows: the token rows.
        features: ``(pictures, 64, hidden)``, the projected image tokens of the first rows; None without pictures.
    """
    embedded = model.get_input_embeddings()(rows.ids)
    if features is not None:
        embedded = embedded.masked_scatter((rows.ids == IMAGE)[..., None], features.to(embedded.dtype))
    states = model.model.language_model(
        inputs_embeds=embedded, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state
    losses = {}
    for kind, target in rows.targets.items():
        learned = target != NOTHING
        # The head is applied to the rows that learn alone, which saves its product for all others.
        losses[kind] = cross_entropy(model.lm_head(states[learned]), target[learned])
    return losses


def _with_noise(pixels: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Blend a ``share`` of the pictures with white noise, in place, with a strength from one half to nothing but noise."""
    for index in range(len(pixels)):
        if rng.random() < share:
            strength = float(rng.uniform(0.5, 1.0))
            noise = torch.from_numpy(rng.normal(size=tuple(pixels.shape[1:])).astype(np.float32)).to(
                pixels.device
            )
            pixels[index] = (1.0 - strength) * pixels[index] + strength * noise
    return pixels


class LoadedLines(Lines):
    """``Lines`` of the trained tokenizer, with the size of its vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.vocabulary = len(tokenizer)


def load_lines(out: Path) -> LoadedLines:
    """Returns the lines of the tokenizer in a training directory."""
    from transformers import AutoTokenizer

    return LoadedLines(AutoTokenizer.from_pretrained(out / "tokenizer"))


def assemble(vocabulary: int, out: Path) -> Any:
    """Returns a model with the tower of stage 1, the language model of stage 2 and a fresh projector."""
    model = build_model(vocabulary)
    model.model.vision_tower.load_state_dict(load_file(out / "vision.safetensors"))
    model.model.language_model.load_state_dict(load_file(out / "text.safetensors"))
    model.tie_weights()
    return model


def _keep(out: Path, stage: str, state: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the weights and the record of a stage."""
    (out / f"{stage}.json").write_text(json.dumps(record))
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, out / f"{stage}.safetensors")
