"""Text that stands before the picture in both prompts is read once, and nothing comes out differently for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, Family
from recomputed import METHODS, MODES, NEW, PLAIN
from strong import STRONG
from torch import Tensor

from keepsight import PAI, VCD, mitigate
from keepsight.engines.hf.beginnings import Prompt, Shared, beginning
from keepsight.target import Target

TEXTS = [[1, 10, 11, 12, 13, 14, 15, 16], [1, 20, 21, 22, 23]]
BEFORE = 4
"""Tokens of text before each picture; the rows of the batch end at different places, and so begin at different ones."""
SHARING = [name for name in FAMILIES if name not in ("mllama", "paligemma", "qwen3_vl")]


def generate(family: Family, **options: Any) -> Tensor:
    inputs = family.inputs(TEXTS, before=BEFORE)
    torch.manual_seed(3)
    out: Tensor = family.model().generate(**inputs, **{**PLAIN, **options})
    return out[:, inputs["input_ids"].shape[1] :]


@contextmanager
def first_pass(family: Family) -> Iterator[list[int]]:
    """How many tokens the first layer's queries are made of in each pass."""
    layer = Target(family.model(), family.inputs(TEXTS)).layers[0]
    module = next(module for name, module in layer.named_modules() if name.endswith("q_proj"))
    sizes: list[int] = []
    handle = module.register_forward_hook(lambda _m, args, _o: sizes.append(args[0].shape[:-1].numel()))
    try:
        yield sizes
    finally:
        handle.remove()


def whole(family: Family, method: Any) -> int:
    """Tokens of both prompts, padding included."""
    target = Target(family.model(), family.inputs(TEXTS, before=BEFORE))
    return target.input_ids.numel() + int(method.amateur(target)["input_ids"].numel())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHARING)
def test_it_is_read_once_and_the_tokens_are_the_same(name: str, method: str) -> None:
    family = FAMILIES[name]
    with mitigate(family.model(), METHODS[method], fused=False):
        apart = generate(family)
    with first_pass(family) as sizes, mitigate(family.model(), METHODS[method], fused=True):
        assert torch.equal(generate(family), apart)
    saved = whole(family, METHODS[method]) - sizes[0]
    marker = int((family.inputs(TEXTS)["input_ids"][0] == IMAGE).long().argmax()) - 1
    # A marker that opens the picture is text to VCD's amateur, and absent from a prompt without a picture
    assert saved in (len(TEXTS) * BEFORE, len(TEXTS) * (BEFORE + (method == "vcd") * marker))
    assert len(sizes) == NEW
    assert not torch.equal(generate(family), apart)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_every_search_and_two_amateurs_at_once(name: str, mode: str) -> None:
    family, recipes = FAMILIES[name], (METHODS["vcd"], METHODS["m3id"])
    results = []
    for fused in (True, False):
        with mitigate(family.model(), *recipes, fused=fused):
            results.append(generate(family, **MODES[mode]))
    assert torch.equal(*results)


@pytest.mark.parametrize(("inner", "shares"), [("pai", True), ("vhr", False), ("vsv", False), ("sla", False)])
def test_not_where_an_edit_may_change_what_the_main_prompt_begins_with(inner: str, shares: bool) -> None:
    family, method = FAMILIES["llava"], METHODS["vcd"]
    edit = PAI(alpha=8.0, gamma=1.0, first_layer=0) if inner == "pai" else STRONG[inner]
    with mitigate(family.model(), edit, method, fused=False):
        apart = generate(family)
    with first_pass(family) as sizes, mitigate(family.model(), edit, method, fused=True):
        assert torch.equal(generate(family), apart)
    assert (whole(family, method) in sizes) is not shares


@pytest.mark.parametrize("method", METHODS)
def test_not_where_the_text_looks_ahead_at_the_picture(method: str) -> None:
    """PaliGemma reads its whole prompt in both directions: what stands before the picture knows of it."""
    family = FAMILIES["paligemma"]
    with mitigate(family.model(), METHODS[method], fused=False):
        apart = generate(family)
    with first_pass(family) as sizes, mitigate(family.model(), METHODS[method], fused=True):
        assert torch.equal(generate(family), apart)
    assert sizes[0] == whole(family, METHODS[method])


def test_a_prompt_read_in_parts_shares_nothing_and_loses_nothing() -> None:
    family = FAMILIES["llava"]
    if not torch.equal(generate(family), generate(family, prefill_chunk_size=3)):
        pytest.skip("this release of transformers gives other tokens for a prompt read in parts by itself")
    with mitigate(family.model(), VCD(alpha=4.0, beta=0.0, noise_step=999), fused=True):
        assert torch.equal(generate(family), generate(family, prefill_chunk_size=3))


def prompt(
    tokens: list[list[float]], mask: list[list[int]], turns: list[list[float]] | None = None
) -> Prompt:
    states = torch.tensor(tokens)[..., None]
    given = {} if turns is None else {"position_embeddings": (torch.tensor(turns)[..., None],)}
    return Prompt(states, torch.tensor(mask), given)


def test_worked_beginnings() -> None:
    main = prompt([[0, 1, 2, 3, 9], [0, 0, 1, 2, 8]], [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    own = prompt([[1, 2, 3, 5], [0, 1, 2, 5]], [[1, 1, 1, 1], [0, 1, 1, 1]])
    found = beginning(main, own)
    assert found is not None
    # The first row shares 3 tokens, the second 2 after one of padding: 3 columns in both
    assert found.columns.tolist() == [[1, 2, 3], [2, 2, 3]]
    assert found.rows.tolist() == [0, 1]
    # The last token is asked about, so it stays even where all are alike
    same = prompt([[1, 2, 3]], [[1, 1, 1]])
    assert beginning(same, same).columns.tolist() == [[0, 1]]  # type: ignore[union-attr]
    assert beginning(same, prompt([[4, 2, 3]], [[1, 1, 1]])) is None
    assert beginning(same, prompt([[1]], [[1]])) is None
    turned_one = prompt([[1, 2]], [[1, 1]], [[0, 1]]), prompt([[1]], [[1]], [[0]])
    assert beginning(*turned_one) is None
    # Alike, but turned differently from the second place on
    turned = prompt([[1, 2, 3]], [[1, 1, 1]], [[0, 1, 2]]), prompt([[1, 2, 3]], [[1, 1, 1]], [[0, 2, 3]])
    assert beginning(*turned).columns.tolist() == [[0]]  # type: ignore[union-attr]
    # Two beams of one prompt: the first of them is the one whose keys are taken
    beams = prompt([[1, 2, 9], [1, 2, 9], [1, 3, 9], [1, 3, 9]], [[1, 1, 1], [1, 1, 1]])
    assert beginning(beams, prompt([[1, 2, 5], [1, 3, 5]], [[1, 1, 1]] * 2)).rows.tolist() == [0, 2]  # type: ignore[union-attr]


def test_worked_looking_back() -> None:
    shared = Shared(torch.tensor([0, 1]), torch.tensor([[0, 1], [-1, 1]]))
    causal = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    assert shared.looks_back(None)
    assert shared.looks_back(causal)
    assert shared.looks_back(torch.where(causal, 0.0, -torch.inf)[:1])
    assert not shared.looks_back(torch.ones_like(causal))
    later = causal.clone()
    later[:, :, 2] = True
    assert shared.looks_back(later)
    padded = causal.clone()
    padded[1, :, 0] = True  # a row of padding, which kernels need not be empty
    assert shared.looks_back(padded)
    padded[1, :, 1] = True
    assert not shared.looks_back(padded)
    heads = causal.repeat(1, 3, 1, 1)
    assert shared.looks_back(heads)
    heads[0, 2, 0, 1] = True
    assert not shared.looks_back(heads), "one head is enough"
    assert not shared.looks_back(torch.where(causal, 0.0, -0.5)), "a bias hides nothing"


def test_worked_keys() -> None:
    main = torch.arange(2 * 1 * 4 * 1).reshape(2, 1, 4, 1)
    shared = Shared(torch.tensor([1]), torch.tensor([[2, 3]]))
    assert shared.of(main).flatten().tolist() == [6, 7]
