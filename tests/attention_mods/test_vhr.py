"""VHR: worked numbers, laws of selection, and the paper's procedure written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager import embed, run
from families import FAMILIES
from restated import NAMES, PROMPT, compare, stream, text_stream
from torch import Tensor

from keepsight import VHR, InputError, mitigate
from keepsight.attention_mods.layers import last_layers
from keepsight.attention_mods.vhr import clean, divergence, select

WITH = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
ALONE = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [9.0, 7.0]])


def test_worked_selection() -> None:
    divergences = divergence(WITH, ALONE)
    assert divergences.tolist() == [5.0, 1.0, 2.0, 10.0]
    assert select(divergences).tolist() == [True, False, False, True]  # the wrong head, without cleaning
    cleaned = clean(divergences, ALONE)
    assert cleaned.tolist() == [5.0, 1.0, 2.0, 0.0]
    assert select(cleaned).tolist() == [True, False, True, False]


def test_half_of_the_heads_and_none_without_a_picture() -> None:
    divergences = torch.rand(6, 32)
    assert select(divergences).sum(-1).tolist() == [16] * 6
    assert not select(torch.zeros(3, 8)).any()


def test_a_single_head_stands_out_from_nothing() -> None:
    moved = torch.tensor([[3.0]])
    assert torch.equal(clean(moved, torch.ones(1, 1, 4)), moved)
    assert not select(moved).any()


def test_selection_does_not_depend_on_a_rotation_of_head_outputs() -> None:
    a, b = torch.randn(8, 16), torch.randn(8, 16)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16))
    assert torch.equal(
        select(clean(divergence(a, b), b)),
        select(clean(divergence(a @ rotation, b @ rotation), b @ rotation)),
    )


def test_default_layers_are_the_papers_at_32() -> None:
    assert [1, *last_layers(32, 0.44)] == [1, *range(18, 32)]


@pytest.mark.parametrize("name", NAMES)
def test_procedure_restated(name: str) -> None:
    """Layer by layer: heads are chosen while the earlier layers are already reinforced, and kept for the whole answer."""
    alpha = 3.0

    def logits(model: Any, inputs: dict[str, Tensor], generated: Tensor, prompt: int) -> Tensor:
        text: dict[int, Tensor] = {}

        def listen(layer: int, out: Tensor) -> Tensor:
            text[layer] = out[-1]
            return out

        run(model, text_stream(model, torch.zeros(1, 0, dtype=torch.long)), heads=listen)
        chosen: dict[int, list[bool]] = {}

        def choose(layer: int, out: Tensor) -> Tensor:
            with_image, alone = out[prompt - 1], text[layer]
            vhd = [(with_image[h] - alone[h]).norm().item() for h in range(len(alone))]
            energy = [alone[h].square().sum().item() for h in range(len(alone))]

            def high(values: list[float]) -> list[bool]:
                t = torch.tensor(values)
                return [v > (t.mean() + t.std()).item() for v in values]

            vhd = [0.0 if a and b else v for v, a, b in zip(vhd, high(vhd), high(energy), strict=True)]
            ordered = sorted(vhd)
            median = (ordered[1] + ordered[2]) / 2  # four heads
            chosen[layer] = [v > median for v in vhd]
            return scale(layer, out)

        def scale(layer: int, out: Tensor) -> Tensor:
            out = out.clone()
            for head, picked in enumerate(chosen[layer]):
                if picked:
                    out[:, head] *= alpha
            return out

        run(model, embed(model, inputs), heads=choose)
        return run(model, stream(model, inputs, generated), heads=scale)[0]

    compare(name, VHR(alpha=alpha, layers=(0, 1)), logits)


def test_rows_of_a_batch_choose_their_own_heads() -> None:
    from keepsight.attention_mods.vhr import RecordHeads, Reinforce
    from keepsight.decoding.views import NoImage
    from keepsight.engines.hf.engine import HFPasses
    from keepsight.engines.hf.patching import editing
    from keepsight.target import Target

    family = FAMILIES["llava"]
    target = Target(family.model(), family.inputs([PROMPT, PROMPT]))
    layers = frozenset({0, 1})
    edit = Reinforce(layers, 2.0, {}, True)
    with editing(target, edit):
        record = RecordHeads(layers)
        HFPasses(target).prefill(NoImage(), record)
        edit.text_only = record.seen
        target.model.generate(**target.inputs, max_new_tokens=3, min_new_tokens=3)
    assert set(edit.selected) == {0, 1}
    assert all(mask.shape == (2, 4) for mask in edit.selected.values())
    assert any(not torch.equal(mask[0], mask[1]) for mask in edit.selected.values())


def test_a_prompt_in_chunks_is_refused() -> None:
    family = FAMILIES["llava"]
    with mitigate(family.model(), VHR(layers=(1,))), pytest.raises(InputError, match="prefill_chunk_size"):
        family.model().generate(**family.inputs([PROMPT]), max_new_tokens=2, prefill_chunk_size=4)
