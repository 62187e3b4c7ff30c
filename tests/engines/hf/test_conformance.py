"""What every exported method promises, on every family. A new method is tested here without being named."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL, Family
from restated import two_pictures
from strong import STRONG
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from keepsight import (
    VCD,
    ConflictingMethods,
    InputError,
    Method,
    NoImageTokens,
    UnsupportedModel,
    attached,
    methods,
    mitigate,
)
from keepsight.target import Target

PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "suppress_tokens": SPECIAL,
    "do_sample": False,
}


def refuses(name: str, method: str) -> bool:
    """Whether a method declares that it is not defined on a family."""
    return STRONG[method].refusal(Target(FAMILIES[name].model(), FAMILIES[name].inputs(PROMPTS))) is not None


every_method = pytest.mark.parametrize("method", methods())
every_pair = pytest.mark.parametrize(
    ("name", "method"), [(n, m) for n in FAMILIES for m in methods() if not refuses(n, m)]
)


def strong(method: str) -> Method:
    recipe: Method = STRONG[method]
    return recipe


def generate(family: Family, inputs: dict[str, Any], *recipes: Method, **options: Any) -> Tensor:
    with mitigate(family.model(), *recipes):
        out: Tensor = family.model().generate(**inputs, **{**OPTIONS, **options})
    return out[:, inputs["input_ids"].shape[1] :]


def count_hooks(family: Family) -> int:
    # transformers keeps some of its own, so the number is compared and need not be 0
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in family.model().modules())


@every_pair
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


@every_pair
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


@every_pair
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


@every_pair
def test_row_of_a_padded_batch_equals_the_row_alone(name: str, method: str) -> None:
    family = FAMILIES[name]
    together = generate(family, family.inputs(PROMPTS), strong(method))
    for i in range(len(PROMPTS)):
        assert torch.equal(generate(family, family.row(PROMPTS, i), strong(method))[0], together[i])


@every_pair
def test_one_beam_of_a_beam_search_is_greedy(name: str, method: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    greedy = generate(family, inputs, strong(method))
    assert torch.equal(generate(family, inputs, strong(method), num_beams=1, num_return_sequences=1), greedy)


some_families = pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])


@some_families
@every_method
def test_rows_alone_under_beam_search_and_several_sequences(name: str, method: str) -> None:
    family = FAMILIES[name]
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    together = generate(family, family.inputs(PROMPTS), strong(method), **options)
    for i in range(len(PROMPTS)):
        alone = generate(family, family.row(PROMPTS, i), strong(method), **options)
        assert torch.equal(alone, together[2 * i : 2 * i + 2])


@some_families
@every_method
def test_sampling_depends_on_the_seed_alone_also_in_a_second_generation_of_a_block(
    name: str, method: str
) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    outs = []
    with mitigate(family.model(), strong(method)):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outs.append(family.model().generate(**inputs, **{**OPTIONS, "do_sample": True}))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@some_families
@every_method
@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_way_of_running_does_not_change_the_answer(
    options: dict[str, Any], name: str, method: str
) -> None:
    family, prompts = FAMILIES[name], [[1, *[10, 11, 12] * 3]]
    inputs = family.inputs(prompts)
    given = [
        family.model()
        .generate(**inputs, **{**OPTIONS, **more}, output_logits=True, return_dict_in_generate=True)
        .logits
        for more in ({}, options)
    ]
    if not torch.allclose(torch.stack(given[0]), torch.stack(given[1]), atol=1e-3):
        pytest.skip(f"this release of transformers gives other logits under {options} by itself")
    if "prefill_chunk_size" in options and method == "vhr":
        with pytest.raises(InputError, match="prefill_chunk_size"):
            generate(family, inputs, strong(method), **options)
        return
    assert torch.equal(
        generate(family, inputs, strong(method), **options), generate(family, inputs, strong(method))
    )


@every_method
def test_streaming_gives_the_tokens_one_by_one(method: str) -> None:
    class Ear(BaseStreamer):
        def __init__(self) -> None:
            self.heard: list[int] = []

        def put(self, value: Tensor) -> None:
            self.heard += value.flatten().tolist()

        def end(self) -> None:
            self.heard.append(-1)

    family, inputs, ear = FAMILIES["llava"], FAMILIES["llava"].inputs(PROMPTS[:1]), Ear()
    answer = generate(family, inputs, strong(method), streamer=ear)
    assert ear.heard == [*inputs["input_ids"][0].tolist(), *answer[0].tolist(), -1]


@every_method
def test_a_prompt_without_a_picture_is_refused_before_anything_changes(method: str) -> None:
    family = FAMILIES["llava"]
    with pytest.raises(NoImageTokens):
        generate(family, {"input_ids": torch.tensor([[1, 5, 6]])}, strong(method))
    assert "generate" not in vars(family.model())
    assert family.model().config.text_config._attn_implementation == "sdpa"


@every_method
def test_several_pictures_in_one_prompt(method: str) -> None:
    """It acts. That it acts on all pictures is shown below for views, and by ``restated.compare`` inside the model."""
    inputs = two_pictures("llava")
    assert not torch.equal(
        generate(FAMILIES["llava"], inputs, strong(method)), generate(FAMILIES["llava"], inputs)
    )


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "qwen2_5_vl", "internvl", "gemma3", "paligemma", "idefics3"]
)
def test_noise_reaches_every_picture_of_a_prompt(name: str) -> None:
    family, inputs = FAMILIES[name], two_pictures(name)
    recipe = VCD(alpha=2.0, beta=0.0, noise_step=999)
    with attached(family.model(), inputs, recipe) as processors:
        out = family.model().generate(
            **inputs, **OPTIONS, logits_processor=processors, output_scores=True, return_dict_in_generate=True
        )
        given = processors[0].branches[0].inputs["pixel_values"]  # type: ignore[attr-defined]
    clean = inputs["pixel_values"]
    assert (given != clean).all()
    empty = torch.zeros(0, dtype=torch.long)
    kept = [i for i in range(99) if i not in SPECIAL and i != 2]

    def contrast(pixels: Tensor) -> Tensor:
        expert, amateur = (
            family.uncached_logits({**inputs, "pixel_values": shown}, empty) for shown in (clean, pixels)
        )
        return (3 * expert - 2 * amateur)[kept].log_softmax(-1)

    found = out.scores[0][0, kept].log_softmax(-1)
    torch.testing.assert_close(found, contrast(given), atol=1e-4, rtol=1e-4)
    # With one picture in noise and the other clean, the scores would be others.
    side = 1 if name == "idefics3" else 0
    (a, b), (c, d) = (pixels.chunk(2, dim=side) for pixels in (given, clean))
    for half in (torch.cat([a, d], dim=side), torch.cat([c, b], dim=side)):
        assert (contrast(half) - found).abs().max() > 0.01


@pytest.mark.parametrize("method", ["m3id", "pai"])
def test_a_prompt_without_its_picture_is_one_without_any_of_them(method: str) -> None:
    family = FAMILIES["llava"]
    with attached(family.model(), two_pictures("llava", [1, 10, 11]), strong(method)) as processors:
        found = processors[0].branches[0].inputs  # type: ignore[attr-defined]
    written = family.text_only([1, 10, 11])
    assert found.keys() == written.keys()
    assert all(torch.equal(found[key], value) for key, value in written.items())


@every_method
def test_a_compiled_wrapper_is_refused_by_name(method: str) -> None:
    compiled = torch.compile(FAMILIES["llava"].model())
    with pytest.raises(UnsupportedModel, match="OptimizedModule"), mitigate(compiled, strong(method)):
        pass


@every_method
def test_recipes_nest_with_every_other(method: str) -> None:
    family, inputs = FAMILIES["llava"], FAMILIES["llava"].inputs(PROMPTS)
    with (
        mitigate(family.model(), strong(method)),
        pytest.raises(ConflictingMethods, match=f"{method} is given twice"),
    ):
        generate(family, inputs, strong(method))
    for other in set(methods()) - {method}:
        with mitigate(family.model(), strong(method)):
            nested = generate(family, inputs, strong(other))
        assert torch.equal(nested, generate(family, inputs, strong(method), strong(other)))


@pytest.mark.parametrize(("name", "method"), [(n, m) for n in FAMILIES for m in methods() if refuses(n, m)])
def test_refusals_leave_nothing_behind(name: str, method: str) -> None:
    family, inputs = FAMILIES[name], FAMILIES[name].inputs(PROMPTS)
    plain = generate(family, inputs)
    with pytest.raises(UnsupportedModel, match="cross-attention"):
        generate(family, inputs, strong(method))
    assert torch.equal(generate(family, inputs), plain)


@every_method
def test_continuous_batching_is_declared(method: str) -> None:
    with attached(FAMILIES["llava"].model(), FAMILIES["llava"].inputs(PROMPTS), strong(method)) as processors:
        assert all(processor.supports_continuous_batching is False for processor in processors)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@every_method
def test_bfloat16_models_stay_bfloat16(name: str, method: str) -> None:
    family = FAMILIES[name]
    model = copy.deepcopy(family.model()).to(torch.bfloat16)
    inputs = {
        key: value.to(torch.bfloat16) if value.is_floating_point() else value
        for key, value in family.inputs(PROMPTS).items()
    }
    with mitigate(model, strong(method)):
        out = model.generate(**inputs, **OPTIONS, output_scores=True, return_dict_in_generate=True)
    assert all(not scores.isnan().any() for scores in out.scores)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@every_method
def test_two_models_in_two_threads_do_not_disturb_each_other(method: str) -> None:
    names = ["llava", "qwen2_vl"]
    # Drawn before, since threads share one generator of random numbers
    inputs = {name: FAMILIES[name].inputs(PROMPTS) for name in names}
    alone = {name: generate(FAMILIES[name], inputs[name], strong(method)) for name in names}
    together: dict[str, list[Tensor]] = {name: [] for name in names}

    def work(name: str) -> None:
        for _ in range(3):
            together[name].append(generate(FAMILIES[name], inputs[name], strong(method)))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert len(together[name]) == 3
        assert all(torch.equal(one, alone[name]) for one in together[name])


@every_method
def test_papers_are_named(method: str) -> None:
    recipe = strong(method)
    year, number = recipe.paper.split(".")
    assert len(year) == 4
    assert number.isdigit()
    assert 2000 + int(year[:2]) == recipe.year
    assert recipe.paper in (type(recipe).__doc__ or "")
