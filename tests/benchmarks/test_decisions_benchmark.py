"""How decisions of two models are counted, and that the benchmark reads what the methods themselves decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decision_tables import EXACT_NAMES, LABELS, control, decisions, variants
from decisions import CONTROL, EXACT, Reader, captioned, compare, joined, one_at_a_time, read_all
from torch import Tensor

from keepsight import M3ID, VHR, mitigate
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes
from keepsight.source.prompts import prepare


@pytest.fixture(scope="module")
def demo() -> tuple[Any, list[tuple[Any, Tensor, Tensor]]]:
    model, processor = load()
    prompts = dict(prepare(processor, [scene.image() for scene in scenes("val", 3)], PROMPT))
    return model, captioned(model, [prompts])


def test_counts_of_a_cutoff_leave_out_steps_after_the_end() -> None:
    real = torch.tensor([[True, True, False]])
    captions = torch.zeros(1, 3, dtype=torch.long)
    mine = torch.tensor([[[True, True], [True, False], [True, True]]])
    theirs = torch.tensor([[[True, False], [True, False], [False, False]]])
    found = compare([{"a: kept": mine}], [{"a: kept": theirs}], [({}, captions, real)])
    assert found["a: kept"] == {
        "of": 3, "differ": 1, "pictures_differ": 1, "steps": 2, "steps_differ": 1
    }  # fmt: skip


def test_counts_of_heads() -> None:
    real, captions = torch.tensor([[True], [True]]), torch.zeros(2, 1, dtype=torch.long)
    mine, theirs = torch.zeros(2, 2, 4, dtype=torch.bool), torch.zeros(2, 2, 4, dtype=torch.bool)
    theirs[1, 0, :3] = True
    found = compare([{"vhr: heads": mine}], [{"vhr: heads": theirs}], [({}, captions, real)])
    assert found["vhr: heads"] == {"of": 16, "differ": 3, "pictures_differ": 1}


def test_the_float32_model_agrees_with_itself_row_by_row(demo: Any) -> None:
    model, batches = demo
    together = read_all(model, batches)
    assert set(together[0]) == set(LABELS)
    alone = joined(read_all(model, list(one_at_a_time(batches))), batches)
    found = compare(together, alone, batches)
    assert all(row["of"] > 0 for row in found.values())
    assert sum(row["differ"] for row in found.values()) == 0


def test_decisions_are_those_of_a_generation(demo: Any) -> None:
    """Under a method that follows the captions, teacher forcing gives the tokens that ``generate`` gives."""
    model, batches = demo
    ((inputs, captions, _),) = batches
    found = Reader(model, inputs, captions).decisions()
    assert torch.equal(found["none: argmax"][:, 0], captions[:, 0])
    length = inputs["input_ids"].shape[1]
    for method in (VHR(), M3ID()):
        with mitigate(model, method):
            first = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, length]
        assert torch.equal(found[f"{method.name()}: argmax"][:, 0], first)


@pytest.mark.parametrize("exact", EXACT)
def test_variants_change_nothing_in_float32(demo: Any, exact: str) -> None:
    model, batches = demo
    same = compare(read_all(model, batches), read_all(model, batches, exact), batches)
    assert sum(row["differ"] for row in same.values()) == 0


def test_tables_show_counts_and_shares() -> None:
    row = {"of": 200, "differ": 3, "pictures_differ": 2, "steps": 100, "steps_differ": 3}
    ways = (CONTROL, "bfloat16", "float16", *(f"bfloat16, {exact} in float32" for exact in EXACT))
    model = {"steps": 100, "ways": {way: dict.fromkeys(LABELS, row) for way in ways}}
    result = {
        "n": 10, "split": "val", "seed": 0, "models": {"demo": model, "random": model}, "var": {"dims": [0], "tau": 1},
        "hardware": {"cpu": "a CPU", "threads": 1}, "versions": {"torch": "2", "transformers": "5", "keepsight": "0"},
    }  # fmt: skip
    text = decisions(result)
    assert "3 of 200 (1.5 %); steps: 3 of 100 (3.0 %); pictures: 2" in text
    assert f"{control(result)} decisions differed" in text
    assert control(result) == 2 * 3 * len(LABELS)
    assert "| heads | VHR: selected heads | 3 of 200 | 3 of 200 | 3 of 200 | 3 of 200 |" in variants(result)
    assert EXACT_NAMES == EXACT
