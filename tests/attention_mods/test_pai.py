"""PAI: worked numbers, rows that must not change, and the formulas written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager import run
from families import FAMILIES, IMAGE
from restated import NAMES, compare, stream, text_stream
from torch import Tensor

from keepsight import PAI, InvalidParameter, mitigate
from keepsight.attention_mods.pai import boost, guide
from keepsight.target import cache_among


def test_worked_boost() -> None:
    scores = torch.tensor([[[[1.0, -1.0, 2.0]]]])
    image = torch.tensor([[True, True, False]])
    raised = boost(scores, image, 0.5)
    assert raised.tolist() == [[[[1.5, -0.5, 2.0]]]]
    assert scores.softmax(-1)[..., :2].sum().item() == pytest.approx(0.2946, abs=5e-5)
    assert raised.softmax(-1)[..., :2].sum().item() == pytest.approx(0.4078, abs=5e-5)
    assert boost(scores, image, 1.0)[0, 0, 0, 1] == 0


def test_guidance_at_one_is_the_expert_and_beyond_moves_away() -> None:
    expert, amateur = torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([[1.0, 2.0, -1.0]])
    same = guide(expert, amateur, 1.0)
    torch.testing.assert_close(same[:, :2], expert.log_softmax(-1)[:, :2])
    assert same[0, 2] == -torch.inf
    lp, lu = expert.log_softmax(-1), amateur.log_softmax(-1)
    torch.testing.assert_close(guide(expert, amateur, 1.5)[:, :2], (1.5 * (lp - lu) + lu)[:, :2])


@pytest.mark.parametrize("name", NAMES)
def test_attention_part_restated(name: str) -> None:
    alpha, first = 3.0, 1

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        picture = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()

        def raise_picture(layer: int, z: Tensor) -> Tensor:
            if layer < first:
                return z
            z = z.clone()
            for row in range(prompt - 1, z.shape[1]):
                z[:, row, picture] += alpha * z[:, row, picture].abs()
            return z

        return run(model, stream(model, inputs, generated), scores=raise_picture)[0]

    compare(name, PAI(alpha=alpha, gamma=1.0, first_layer=first), logits)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_restated_and_its_amateur_runs_unedited(name: str) -> None:
    alpha, gamma = 2.0, 1.7

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        picture = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()

        def raise_picture(layer: int, z: Tensor) -> Tensor:
            z = z.clone()
            z[:, prompt - 1 :, picture] += alpha * z[:, prompt - 1 :, picture].abs()
            return z

        lp = run(model, stream(model, inputs, generated), scores=raise_picture)[0].log_softmax(-1)
        lu = run(model, text_stream(model, generated))[0].log_softmax(-1)
        # the cutoff is relative to the best token that is still allowed: markers and the end are suppressed here
        allowed = torch.ones(99, dtype=torch.bool)
        allowed[list(range(88, 99))] = False
        allowed[2] = False
        best = lp[allowed].max()
        return (gamma * (lp - lu) + lu).masked_fill(lp < best + torch.tensor(0.1).log(), -torch.inf)

    compare(name, PAI(alpha=alpha, gamma=gamma, first_layer=0), logits)


def test_only_the_last_row_of_the_prompt_changes() -> None:
    """K and V of earlier prompt rows, in every layer, are those of plain generation, bit for bit."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.inputs([[1, 10, 11, 12, 13]])
    options: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "return_dict_in_generate": True}
    plain = cache_among(model.generate(**inputs, **options))
    with mitigate(model, PAI(alpha=5.0, gamma=1.0, first_layer=0)):
        edited = cache_among(model.generate(**inputs, **options))
    last = inputs["input_ids"].shape[1] - 1
    for a, b in zip(plain.layers, edited.layers, strict=True):
        assert torch.equal(a.keys[:, :, :last], b.keys[:, :, :last])
        assert torch.equal(a.values[:, :, :last], b.values[:, :, :last])
    assert not torch.equal(plain.layers[1].values[:, :, last], edited.layers[1].values[:, :, last])


def test_layers_out_of_range() -> None:
    family = FAMILIES["llava"]
    with (
        mitigate(family.model(), PAI(layers=(0, 7))),
        pytest.raises(InvalidParameter, match="layers 0 to 1, not 7"),
    ):
        family.model().generate(**family.inputs([[1, 5, 6]]), max_new_tokens=1)
