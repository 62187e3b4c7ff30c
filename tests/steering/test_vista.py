"""VISTA: worked numbers of both parts, laws, and both conventions written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager import embed, run
from families import FAMILIES
from restated import NAMES, PROMPT, compare, stream, text_stream
from torch import Tensor

from keepsight import SLA, VSV, InvalidParameter, mitigate
from keepsight.steering.vista import augment, steer

X = torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("vector", "code", "expected"),
    [
        ([2.0, 0.0], False, [3.2047, 3.8380]),
        ([2.0, 0.0], True, [3.4673, 3.6024]),
        ([-2.0, 0.0], False, [2.7687, 4.1635]),
        ([-2.0, 0.0], True, [1.8968, 4.6263]),
    ],
)
def test_worked_steering(vector: list[float], code: bool, expected: list[float]) -> None:
    moved = steer(X, torch.tensor(vector), 0.17, unit=code, gain=code)
    torch.testing.assert_close(moved, torch.tensor(expected), atol=1e-4, rtol=0)
    assert moved.norm().item() == pytest.approx(5.0, abs=1e-5)


def test_length_and_dtype_are_kept_and_nothing_moves_along_zero() -> None:
    hidden = torch.randn(2, 5, 16).bfloat16()
    vector = torch.randn(2, 1, 16)
    moved = steer(hidden, vector, 0.5, unit=True, gain=True)
    assert moved.dtype == torch.bfloat16
    torch.testing.assert_close(moved.float().norm(dim=-1), hidden.float().norm(dim=-1), rtol=1e-2, atol=0)
    assert torch.equal(steer(hidden, torch.zeros(16), 0.5, unit=True, gain=True), hidden)


def test_a_unit_direction_forgets_the_vectors_length() -> None:
    vector = torch.randn(2)
    torch.testing.assert_close(
        steer(X, vector, 0.3, unit=True, gain=False), steer(X, 7 * vector, 0.3, unit=True, gain=False)
    )
    assert not torch.allclose(
        steer(X, vector, 0.3, unit=False, gain=False), steer(X, 7 * vector, 0.3, unit=False, gain=False)
    )


def test_augment() -> None:
    final, late = torch.tensor([[1.0, -torch.inf, 3.0]]), torch.tensor([[2.0, 5.0, -1.0]])
    assert augment(final, late, 0.25).tolist() == [[1.25, -torch.inf, 2.0]]
    assert augment(final, late, 1.0).tolist() == [[2.0, -torch.inf, -1.0]]
    assert torch.equal(augment(final, late, 0.0), final)


def vectors(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    shown = run(model, embed(model, inputs))[1]
    hidden = run(model, text_stream(model, torch.zeros(1, 0, dtype=torch.long)))[1]
    return [a[-1] - b[-1] for a, b in zip(shown, hidden, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_papers_vector_restated(name: str) -> None:
    strength = 0.9

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        v = vectors(model, inputs)

        def move(layer: int, hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            for row in range(prompt - 1, len(hidden)):
                h = hidden[row]
                moved = h + strength * v[layer]
                hidden[row] = moved * h.norm() / moved.norm()
            return hidden

        return run(model, stream(model, inputs, generated), leave=move)[0]

    compare(name, VSV(strength=strength), logits)


@pytest.mark.parametrize("name", NAMES)
def test_codes_vector_restated(name: str) -> None:
    strength = 0.6

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        v = vectors(model, inputs)

        def move(layer: int, out: Tensor) -> Tensor:
            moved = []
            for x in out:
                away = torch.nn.functional.cosine_similarity(x, -v[layer], dim=0)
                g = 1 + max(0.0, away.item())
                y = x / x.norm() + strength * g * v[layer] / v[layer].norm()
                moved.append(y / y.norm() * x.norm())
            return torch.stack(moved)

        return run(model, stream(model, inputs, generated), mlp=move)[0]

    compare(name, VSV(strength=strength, site="mlp", direction="unit", gain="cos", rows="all"), logits)


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_late_logits_restated(name: str, final_norm: bool) -> None:
    gamma = 0.4

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        final, states = run(model, stream(model, inputs, generated))
        with torch.no_grad():
            late = states[0][-1]  # two layers: the one before the last
            late = model.get_decoder().norm(late) if final_norm else late
            return (1 - gamma) * final + gamma * model.get_output_embeddings()(late)

    compare(name, SLA(gamma=gamma, window=1, final_norm=final_norm), logits)


def test_window_longer_than_the_decoder() -> None:
    family = FAMILIES["llava"]
    with mitigate(family.model(), SLA()), pytest.raises(InvalidParameter, match="less than the 2 layers"):
        family.model().generate(**family.inputs([PROMPT]), max_new_tokens=1)


def test_both_parts_together_differ_from_each() -> None:
    family = FAMILIES["llava"]
    outs = []
    for recipes in (
        (VSV(strength=3.0),),
        (SLA(gamma=0.8, window=1),),
        (VSV(strength=3.0), SLA(gamma=0.8, window=1)),
    ):
        with mitigate(family.model(), *recipes):
            outs.append(
                family.model().generate(**family.inputs([PROMPT]), max_new_tokens=8, min_new_tokens=8)
            )
    assert not torch.equal(outs[2], outs[0])
    assert not torch.equal(outs[2], outs[1])
