"""The sink benchmark: its task is what it says, its figures by hand, and planted sinks are sinks that VAR empties."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keepsight import VAR
from keepsight.analysis.probe import probe
from keepsight.demo.model import BOS, IMAGE, PROMPT, load
from keepsight.demo.world import NAMES, ask, scenes
from keepsight.source.prompts import prepare
from training.demo.train_data import NOTHING, Lines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def parts() -> Iterator[Any]:
    """The benchmark's modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return load()


def test_a_trigger_is_followed_by_what_preceded_it_and_nothing_else_is_bound_to(parts: Any) -> None:
    task = parts("sink_tasks").Backcopy()
    rows = task.draw(np.random.default_rng(3), 200, 40)
    assert task.trigger.sum() == 3
    assert not task.trigger[rows[:, 0]].any()
    after = task.trigger[rows[:, 1:-1]]
    assert after.sum() > 200
    np.testing.assert_array_equal(rows[:, 2:][after], rows[:, :-2][after])
    free = rows[:, 2:][~after] == rows[:, :-2][~after]
    assert free.mean() < 0.3


def test_symbols_are_tokens_of_their_own(parts: Any, demo: tuple[Any, Any]) -> None:
    tasks, tokenizer = parts("sink_tasks"), demo[1].tokenizer
    texts = [f"USER: <image>\n{PROMPT} ASSISTANT: {one.caption()}" for one in scenes("train", 300)]
    texts += [f"{ask(name)} ASSISTANT: {said}" for name in NAMES for said in ("Yes", "No")]
    used = {token for text in texts for token in tokenizer.encode(text)}
    assert used.isdisjoint(range(tasks.FIRST_SYMBOL, tasks.FIRST_SYMBOL + tasks.SYMBOLS))
    ids = tasks.Backcopy().ids(np.random.default_rng(0), 2, 5)
    assert (ids[:, 0] == BOS).all()
    assert ids.shape == (2, 5)


def test_rows_with_the_picture_first_have_no_bos_and_backcopy_is_a_kind_of_its_own(
    parts: Any, demo: tuple[Any, Any]
) -> None:
    tasks, lines = parts("sink_tasks"), Lines(demo[1].tokenizer)
    shown = scenes("val", 2)
    rows = tasks.picture_rows(
        lines, shown, np.random.default_rng(0), task=tasks.Backcopy(), picture_first=True
    )
    assert (rows.ids[:, :64] == IMAGE).all()
    assert not (rows.ids == BOS).any()
    copied = rows.targets["backcopy"]
    assert ((copied == NOTHING) | ((copied >= 96) & (copied < 160))).all()
    assert int((copied != NOTHING).sum()) == 2 * 47
    assert not ((rows.targets["answer"] >= 96) & (rows.targets["answer"] < 160)).any()


def test_first_token_figures(parts: Any) -> None:
    measure = parts("sink_measure")
    attention = torch.zeros(1, 2, 3, 3)
    attention[0, 0, :, 0] = torch.tensor([1.0, 0.8, 0.4])
    attention[0, 1, :, 0] = torch.tensor([1.0, 0.2, 0.1])
    states = torch.ones(1, 3, 4)
    states[0, 0] = torch.tensor([1.0, 1.0, -7.0, 1.0])
    learned = torch.tensor([[False, True, True]])
    found = measure.first_token([attention], learned, [states])
    assert found["sink_rate"] == 0.5  # 0.6 and 0.15
    layer = found["layers"][0]
    assert (layer["mass_mean"], layer["mass_of_highest_head"], layer["heads_above_0.3"]) == (0.375, 0.6, 1)
    assert layer["first_token"] == {"max_over_rms": 1.941, "max_over_median": 7.0, "dimension": 2}  # 7 / √13
    assert layer["norm_over_median_norm"] == 3.606  # √52 / 2


def test_planted_sinks_are_confirmed_and_var_empties_them(parts: Any) -> None:
    planted, tasks = parts("sink_planted"), parts("sink_tasks")
    model, processor = load()
    check = tasks.gallery(model.model.vision_tower, "val", 12)
    pictures = [one.image() for one in check.scenes]
    inputs = prepare(processor, pictures[:8], PROMPT)
    dim = planted.quietest_dimension(model, inputs)
    planted.clear(model, dim)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert all(bool((one[..., dim] == 0).all()) for one in states)

    reached = planted.plant(model, inputs, check, dim, 0.5)
    assert reached == pytest.approx([0.5] * 4, abs=0.05)
    sinks, empty = planted.planted_tokens(model, check, dim)
    assert 1 <= sinks <= 6
    assert empty > 0.9
    found = probe(model, [prepare(processor, [one], PROMPT) for one in pictures], prompt=PROMPT)
    assert found.supported, found.reasons
    assert found.dims == (dim,)

    before = planted.attention_shares(model, inputs, dim, None)
    every = VAR(dims=(dim,), tau=found.tau, fraction=1.0, ratio=0.0, mass=0.0, layers=(2, 3, 4, 5))
    after = planted.attention_shares(model, inputs, dim, every)
    for layer in range(2, 6):
        assert before["visual_sinks"][layer] > 0.05
        assert after["visual_sinks"][layer] < 0.02
        assert after["other_image"][layer] > before["other_image"][layer] + 0.05
    for shares in (before, after):
        whole = zip(
            *(shares[name] for name in ("visual_sinks", "first_token", "other_image", "text")), strict=True
        )
        assert [sum(one) for one in whole] == pytest.approx([1.0] * 6, abs=1e-3)


def test_the_page_shows_the_tables_of_the_results(parts: Any) -> None:
    result = json.loads((BENCHMARKS / "results" / "sinks.json").read_text(encoding="utf-8"))
    page = (BENCHMARKS.parent / "docs" / "sinks.md").read_text(encoding="utf-8")
    for name, table in parts("sink_tables").tables(result).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end -->" in page, name
