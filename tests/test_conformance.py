"""What every exported method promises, on every family. A new method is tested here without being named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL, Family
from strong import STRONG
from torch import Tensor

from sightline import Method, methods, mitigate

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "suppress_tokens": SPECIAL,
    "do_sample": False,
}

every_method = pytest.mark.parametrize("method", methods())
every_family = pytest.mark.parametrize("name", FAMILIES)


def strong(method: str) -> Method:
    assert method in STRONG, f"add {method} to tests/strong.py, at a strength that changes tokens"
    recipe: Method = STRONG[method]
    return recipe


def generate(family: Family, inputs: dict[str, Any], *recipes: Method, **options: Any) -> Tensor:
    with mitigate(family.model(), *recipes):
        out: Tensor = family.model().generate(**inputs, **{**OPTIONS, **options})
    return out[:, inputs["input_ids"].shape[1] :]


def count_hooks(family: Family) -> int:
    # transformers keeps some of its own, so the number is compared and need not be 0
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in family.model().modules())


@every_method
@every_family
def test_off_is_plain_generation_bit_for_bit(name: str, method: str) -> None:
    family, off = FAMILIES[name], strong(method).off()
    for options in ({}, {"do_sample": True, "num_beams": 2}):
        results = []
        for recipes in ((), (off,)):
            torch.manual_seed(0)
            with mitigate(family.model(), *recipes):
                results.append(
                    family.model().generate(
                        **family.inputs(PROMPTS),
                        **{**OPTIONS, **options},
                        output_scores=True,
                        return_dict_in_generate=True,
                    )
                )
        plain, same = results
        assert torch.equal(plain.sequences, same.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.scores, same.scores, strict=True))


@every_method
@every_family
def test_strong_changes_tokens_and_leaves_the_model_bitwise_as_before(name: str, method: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    plain = generate(family, inputs)
    before = {key: value.clone() for key, value in family.model().state_dict().items()}
    attributes, hooks = sorted(vars(family.model())), count_hooks(family)
    assert not torch.equal(generate(family, inputs, strong(method)), plain)
    assert sorted(vars(family.model())) == attributes
    assert all(torch.equal(before[key], value) for key, value in family.model().state_dict().items())
    assert count_hooks(family) == hooks
    assert torch.equal(generate(family, inputs), plain)


@every_method
@every_family
def test_an_error_inside_the_block_leaves_nothing_behind(name: str, method: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    plain = generate(family, inputs)

    def stop(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if ids.shape[1] >= inputs["input_ids"].shape[1] + 3:
            raise ZeroDivisionError
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(ZeroDivisionError):
        generate(family, inputs, strong(method), stopping_criteria=[stop])
    assert "generate" not in vars(family.model())
    assert torch.equal(generate(family, inputs), plain)


@every_method
@every_family
def test_row_of_a_padded_batch_equals_the_row_alone(name: str, method: str) -> None:
    family = FAMILIES[name]
    together = generate(family, family.inputs(PROMPTS), strong(method))
    for i in range(len(PROMPTS)):
        assert torch.equal(generate(family, family.row(PROMPTS, i), strong(method))[0], together[i])


@every_method
@every_family
def test_one_beam_of_a_beam_search_is_greedy(name: str, method: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    greedy = generate(family, inputs, strong(method))
    assert torch.equal(generate(family, inputs, strong(method), num_beams=1, num_return_sequences=1), greedy)


@every_method
def test_recipes_nest_with_every_other(method: str) -> None:
    family, inputs = FAMILIES["llava"], FAMILIES["llava"].inputs(PROMPTS)
    for other in methods():
        with mitigate(family.model(), strong(method)):
            nested = generate(family, inputs, strong(other))
        assert torch.equal(nested, generate(family, inputs, strong(method), strong(other)))


@every_method
def test_scores_keep_dtype_and_input_and_finite_numbers(method: str) -> None:
    family, inputs = FAMILIES["llava"], FAMILIES["llava"].inputs(PROMPTS)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scores = (torch.randn(2, 99, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
        before = scores.clone()
        out = strong(method).processor(family.model(), inputs)(inputs["input_ids"], scores)
        assert out.dtype == dtype
        assert out.shape == scores.shape
        assert not out.isnan().any()
        assert torch.equal(scores, before)


@every_method
def test_continuous_batching_is_declared(method: str) -> None:
    processor = strong(method).processor(FAMILIES["llava"].model(), FAMILIES["llava"].inputs(PROMPTS))
    assert processor.supports_continuous_batching is False


@every_method
def test_papers_are_named(method: str) -> None:
    recipe = strong(method)
    year, number = recipe.paper.split(".")
    assert len(year) == 4
    assert number.isdigit()
    assert 2000 + int(year[:2]) == recipe.year
    assert recipe.paper in (type(recipe).__doc__ or "")
