"""M3ID: weight, gate and cutoff, on numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from keepsight import M3ID, InvalidParameter
from keepsight.decoding.m3id import closed, m3id, weight

Z = torch.tensor([[2.0, 1.5, -1.0]])
U = torch.tensor([[1.0, 2.0, -1.0]])


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 0.020201), (10, 0.221403), (35, 1.013753), (50, 1.718282), (100, 6.389056)],
)
def test_weight(step: int, expected: float) -> None:
    assert weight(step, 0.02, 100.0) == pytest.approx(expected, abs=1e-6)


def test_weight_is_capped_and_never_overflows() -> None:
    assert weight(230, 0.02, 100.0) == pytest.approx(98.484, abs=1e-3)
    assert weight(231, 0.02, 100.0) == 100.0
    assert weight(10**9, 5.0, 100.0) == 100.0
    assert weight(10, 0.0, 100.0) == 0.0
    assert weight(10, 0.02, 0.0) == 0.0


@pytest.mark.parametrize(
    ("step", "probabilities"),
    [
        (1, [0.6108, 0.3594, 0.0298]),
        (10, [0.6780, 0.2950, 0.0270]),
        (35, [0.8691, 0.1152, 0.0157]),
        (50, [0.9479, 0.0437, 0.0085]),
    ],
)
def test_worked_probabilities(step: int, probabilities: list[float]) -> None:
    scores = m3id(Z, U, weight=weight(step, 0.02, 100.0))
    torch.testing.assert_close(scores.softmax(-1), torch.tensor([probabilities]), atol=6e-5, rtol=0)


def test_worked_scores() -> None:
    scores = m3id(Z, U, weight=0.221403)
    torch.testing.assert_close(scores, torch.tensor([[-0.3176, -1.1497, -3.5390]]), atol=6e-5, rtol=0)


def test_cutoff() -> None:
    for step, expected in ((10, [0.6968, 0.3032, 0.0]), (35, [0.8829, 0.1171, 0.0])):
        scores = m3id(Z, U, weight=weight(step, 0.02, 100.0), cutoff=0.1)
        torch.testing.assert_close(scores.softmax(-1), torch.tensor([expected]), atol=6e-5, rtol=0)
        assert scores[0, 2] == -math.inf


def test_gate_leaves_a_certain_step_as_it_is_and_rules_nothing_out() -> None:
    # the most likely token has probability 0.6037
    assert torch.equal(m3id(Z, U, weight=2.0, gate=0.5), Z)
    assert torch.equal(m3id(Z, U, weight=2.0, gate=0.0), Z)
    assert torch.equal(m3id(Z, U, weight=2.0, gate=0.5, cutoff=0.9), Z)
    for gate in (0.7, 1.0):
        assert torch.equal(m3id(Z, U, weight=2.0, gate=gate), m3id(Z, U, weight=2.0))
    assert torch.isfinite(m3id(Z, U, weight=2.0, gate=0.7)).all()


def test_gate_near_1_is_compared_by_what_the_other_tokens_leave() -> None:
    # The other token has e^-17 = 4.1e-8 of the largest: a probability that float32 cannot tell from 1
    logits = torch.tensor([[0.0, -17.0]])
    assert logits.log_softmax(-1).amax() == 0
    assert closed(logits, 1 - 5e-8).all()
    assert not closed(logits, 1 - 3e-8).any()
    assert not closed(logits, 1.0).any()
    assert closed(logits, 0.0).all()


def test_gate_agrees_with_probabilities_in_double_precision() -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(500, 30)
    likely = logits.double().softmax(-1).amax(-1)
    for gate in (0.2, 0.5, 0.9, 0.99):
        assert torch.equal(closed(logits, gate)[:, 0], likely >= gate)
    ruled_out = torch.tensor([[1.0, -math.inf, -math.inf]])
    assert closed(ruled_out, 0.999).all()


def test_half_precision_logits_are_compared_in_float32() -> None:
    # 0.9 of the probability lies at 2.197 logits above the other token; bfloat16 would compute with 0.9 rounded
    logits = torch.tensor([[2.1875, 0.0], [2.203125, 0.0]], dtype=torch.bfloat16)
    assert closed(logits, 0.9)[:, 0].tolist() == [False, True]
    assert torch.equal(closed(logits, 0.9), closed(logits.float(), 0.9))


def test_gate_is_per_row() -> None:
    z, u = torch.cat([Z, 3 * Z]), torch.cat([U, U])
    scores = m3id(z, u, weight=2.0, gate=0.7)
    assert torch.equal(scores[0], m3id(Z, U, weight=2.0)[0])
    assert torch.equal(scores[1], z[1])


def test_raw_logits_and_log_probabilities_give_the_same_choice() -> None:
    torch.testing.assert_close(m3id(Z, U, weight=1.0), m3id(Z.log_softmax(-1), U + 5, weight=1.0))


def test_a_token_ruled_out_before_stays_out_at_weight_zero() -> None:
    ruled_out = torch.tensor([[2.0, -math.inf, -1.0]])
    for strength in (0.0, 1.0):
        scores = m3id(ruled_out, U, weight=strength)
        assert scores[0, 1] == -math.inf
        assert not scores.isnan().any()


def test_the_two_rules_are_told_apart() -> None:
    assert (M3ID().gate, M3ID().cutoff) == (None, 0.1)
    assert (M3ID(gate=0.9).gate, M3ID(gate=0.9).cutoff) == (0.9, None)
    assert (M3ID(gate=0.9, cutoff=0.2).gate, M3ID(gate=0.9, cutoff=0.2).cutoff) == (0.9, 0.2)


def test_first_token_counts_from_zero_unless_told_otherwise() -> None:
    assert M3ID().weight(0) == 0
    assert M3ID(first=1).weight(0) > 0
    expected = m3id(Z, U, weight=math.expm1(0.02), cutoff=0.1)
    torch.testing.assert_close(M3ID(first=1).combine(Z, [U], 0), expected)


def test_negative_ids_to_drop() -> None:
    with pytest.raises(InvalidParameter, match="also_drop"):
        M3ID(also_drop=(-1,))
