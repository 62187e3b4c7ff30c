"""The logits processor alone: rows as vLLM adds and moves them, and the formulas of the methods."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from two_amateurs import OWN, TwoAmateurs

from keepsight import M3ID, PAI, VCD, parse_all
from keepsight.decoding.m3id import m3id, weight
from keepsight.decoding.vcd import vcd
from keepsight.engines.vllm.placing import ROW, plan, serve
from keepsight.parts import Contrast as ContrastPart

pytestmark = pytest.mark.vllm
VOCAB = 11


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    from keepsight.engines.vllm import processor as module

    monkeypatch.setattr(module, "check_config", lambda config: None)
    monkeypatch.setenv("KEEPSIGHT_VLLM_METHODS", "[]")
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=None))
    return module.Contrast(config, torch.device("cpu"), False)


def update(*, added: Any = (), removed: Any = (), moved: Any = (), size: int = 8) -> Any:
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    return BatchUpdate(batch_size=size, removed=removed, added=added, moved=moved)


def row(index: int, members: str, number: int, spec: str, output: list[int]) -> Any:
    return (index, SimpleNamespace(extra_args={ROW: (members, number, spec)}), None, output)


def scores(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def test_sets_are_combined_wherever_their_rows_are(processor: Any) -> None:
    spec, early, late = "m3id:decay=0.3,cutoff=0.05", [7], [7, 8, 9]
    processor.update_state(
        update(
            added=[
                row(0, "a", 1, spec, early), row(3, "a", 0, spec, early), row(1, "b", 0, spec, late),
                row(4, "b", 1, spec, late), row(5, "c", 0, "vcd:alpha=2.0", late), row(2, "c", 1, "vcd:alpha=2.0", late),
                (6, SimpleNamespace(extra_args=None), None, []),
            ]
        )
    )  # fmt: skip
    logits = scores(7)
    before = logits.clone()
    after = processor.apply(logits)
    for expert, amateur, step in ((3, 0, 1), (1, 4, 3)):
        one = m3id(before[[expert]], before[[amateur]], weight=weight(step, 0.3, 100.0), cutoff=0.05)
        assert torch.equal(after[expert], one.log_softmax(-1)[0])
        assert torch.equal(after[amateur], after[expert])
    assert torch.equal(after[5], vcd(before[[5]], before[[2]], alpha=2.0, beta=0.1).log_softmax(-1)[0])
    assert torch.equal(after[6], before[6])


def test_rows_are_followed_as_they_move(processor: Any) -> None:
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality as Move

    output = [1]
    processor.update_state(update(added=[row(i, "a", i, "vcd:beta=0.0", output) for i in (0, 1)]))
    processor.update_state(update(moved=[(0, 3, Move.UNIDIRECTIONAL), (1, 3, Move.SWAP)]))
    logits = scores(4)
    before = logits.clone()
    after = processor.apply(logits)
    assert torch.equal(after[1], vcd(before[[1]], before[[3]], alpha=1.0, beta=0.0).log_softmax(-1)[0])
    assert torch.equal(after[3], after[1])
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    processor.update_state(update(removed=[1, 3]))
    assert torch.equal(processor.apply(before.clone()), before)
    assert not processor._sets


def test_a_row_that_is_replaced_is_forgotten(processor: Any) -> None:
    processor.update_state(update(added=[row(i, "a", i, "vcd", [1]) for i in (0, 1)]))
    processor.update_state(update(added=[(i, SimpleNamespace(extra_args={}), None, []) for i in (0, 1)]))
    logits = scores(2)
    assert torch.equal(processor.apply(logits.clone()), logits)


@pytest.mark.parametrize("steps", [([1], [1, 2]), ([1], None)], ids=["apart", "alone"])
def test_sets_that_are_not_whole_draw_different_tokens(processor: Any, steps: Any) -> None:
    """Nothing can pass for an answer: the scheduler compares what the rows of a set draw."""
    added = [row(i, "a", i, "vcd", output) for i, output in enumerate(steps) if output is not None]
    processor.update_state(update(added=added))
    after = processor.apply(scores(3))
    assert [int(after[i].argmax()) for i in range(len(added))] == list(range(len(added)))
    assert bool((after[: len(added)] == -math.inf).sum() == len(added) * (VOCAB - 1))


def test_methods_that_are_joined_act_in_their_order(processor: Any) -> None:
    spec = "pai:alpha=0.0,gamma=2.0+vcd:alpha=0.5,beta=0.0"
    processor.update_state(update(added=[row(i, "a", i, spec, [1, 2]) for i in range(3)]))
    logits = scores(3)
    before = logits.clone()
    first, second = (part for method in parse_all(spec) for part in plan((method,)).contrasts)
    one = first[0].combine(before[[0]], [before[[1]]], 2).log_softmax(-1)
    two = second[0].combine(one, [before[[2]]], 2).log_softmax(-1)
    after = processor.apply(logits)
    assert all(torch.equal(after[i], two[0]) for i in range(3))


def test_a_formula_of_two_amateurs(processor: Any) -> None:
    spec = f"{OWN}:strength=0.5"
    serve([spec])
    processor.update_state(update(added=[row(i, "a", i, spec, [1, 2]) for i in range(3)]))
    logits = scores(3)
    before = logits.clone()
    text, noise = before[[1]].log_softmax(-1), before[[2]].log_softmax(-1)
    wanted = 2 * before[[0]].log_softmax(-1) - (0.75 * text + 0.25 * noise)
    after = processor.apply(logits)
    assert torch.allclose(after[0], wanted.log_softmax(-1)[0], atol=1e-5)
    assert torch.equal(after[1], after[0])
    assert torch.equal(after[2], after[0])


def test_only_formulas_without_state_are_shared_between_sets() -> None:
    from keepsight.engines.vllm.processor import formula

    def key(method: Any) -> Any:
        return formula(plan((method,)).contrasts[0][0])

    for method, other in (
        (M3ID(decay=0.3), M3ID(decay=0.4)),
        (VCD(alpha=2.0), VCD(alpha=3.0)),
        (PAI(alpha=0.0, gamma=2.0), PAI(alpha=0.0, gamma=3.0)),
        (TwoAmateurs(), TwoAmateurs(strength=3.0)),
    ):
        assert key(method) == key(method)
        assert key(method) != key(other)

    def counting() -> Any:
        seen: list[int] = []

        def combine(expert: Any, amateurs: Any, step: int) -> Any:
            seen.append(step)
            return expert

        return ContrastPart(views=plan((VCD(),)).views, combine=combine)

    assert formula(counting()) != formula(counting())


def test_rows_that_a_formula_leaves_keep_their_very_scores() -> None:
    from keepsight.engines.vllm.processor import contrasted

    expert, amateur = scores(3, 1), scores(3, 2)
    # At step 0 the weight is 0, and without a cutoff nothing changes but by normalising
    part = plan((M3ID(gate=0.0),)).contrasts[0][0]
    assert torch.equal(contrasted(part, expert, [amateur], 5), expert)
