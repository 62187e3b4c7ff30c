"""The contrast branch against a naive reference: every row alone, unpadded, uncached, recomputed at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, SPECIAL
from recomputed import METHODS, MODES, NEW, PLAIN, PROMPTS, Given, Recomputed, amateur_inputs, fresh, run
from torch import Tensor
from transformers import FuyuConfig, FuyuForCausalLM, TextStreamer

from keepsight import M3ID, VCD, ProcessorReused, attached, mitigate
from keepsight.decoding.contrast import contrast
from keepsight.decoding.views import MainPrompt
from keepsight.engines.hf.branch import Branch, match_prefixes
from keepsight.parts import Contrast
from keepsight.target import Target


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_recomputing_both_branches(name: str, method: str, mode: str) -> None:
    family, recipe, options = FAMILIES[name], METHODS[method], MODES[mode]
    reference = run(family, PROMPTS, Recomputed(family, recipe, PROMPTS), use_cache=False, **options)
    assert torch.equal(run(family, PROMPTS, fresh(family, recipe, PROMPTS), **options), reference)
    with mitigate(family.model(), recipe, fused="auto" if name == "mllama" else True):
        assert torch.equal(run(family, PROMPTS, **options), reference)
    assert not torch.equal(run(family, PROMPTS, **options), reference), (
        "the contrast must matter in this cell"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_logits_equal_uncached_ones(name: str, method: str) -> None:
    """Logits, not only tokens, over eight steps; and the amateur stays alive after the first one."""
    family, recipe = FAMILIES[name], METHODS[method]
    target = Target(family.model(), family.inputs(PROMPTS))
    branch = Branch(target.model, amateur_inputs(recipe, target))
    reference = Recomputed(family, recipe, PROMPTS)
    main = run(family, PROMPTS)
    for step in range(NEW + 1):
        text = main[:, :step]
        expert = torch.stack([family.uncached_logits(family.row(PROMPTS, i), text[i]) for i in range(2)])
        amateur = torch.stack([family.uncached_logits(reference.amateur(i), text[i]) for i in range(2)])
        torch.testing.assert_close(branch(text), amateur, rtol=1e-4, atol=2e-4)
        assert (expert - amateur).abs().max() > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_alpha_cuts_the_tail_and_changes_no_greedy_token(name: str) -> None:
    family = FAMILIES[name]
    assert torch.equal(
        run(family, PROMPTS, fresh(family, VCD(alpha=0.0, beta=0.1), PROMPTS)), run(family, PROMPTS)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_identical_branches_leave_scores_as_they_are_up_to_a_constant(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs(PROMPTS)

    class Same(VCD):
        def parts(self, target: Target) -> Iterator[Contrast]:
            for part in super().parts(target):
                yield replace(part, views=[MainPrompt()])

    processor = Same(alpha=3.0, beta=0.0).processor(model, inputs)
    ids = inputs["input_ids"]
    for _ in range(3):
        grown = {"input_ids": ids}
        logits = torch.stack(
            [
                family.uncached_logits(family.row(PROMPTS, i), ids[i, inputs["input_ids"].shape[1] :])
                for i in range(2)
            ]
        )
        torch.testing.assert_close(processor(ids, logits), logits.log_softmax(-1), rtol=1e-3, atol=2e-3)
        ids = torch.cat([grown["input_ids"], logits[:, :88].argmax(-1, keepdim=True)], dim=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", ["prompt_lookup", "draft_model"])
def test_assisted_decoding_gives_the_same_tokens(name: str, method: str, how: str) -> None:
    family, recipe = FAMILIES[name], METHODS[method]
    prompts = [[1, *[10, 11, 12] * 4]]
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if how == "draft_model":
        options = {"assistant_model": family.model()}  # drafts are the plain model's: many are rejected
    try:
        own = torch.equal(
            run(family, prompts, do_sample=False, **options), run(family, prompts, do_sample=False)
        )
    except (RuntimeError, ValueError, IndexError, TypeError):
        own = False
    if not own:
        pytest.skip(f"transformers' own assisted decoding departs from greedy search on {name}")
    plain = run(family, prompts, fresh(family, recipe, prompts), do_sample=False)
    with attached(family.model(), family.inputs(prompts), recipe, fused=False) as processors:
        assert torch.equal(run(family, prompts, *processors, do_sample=False, **options), plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_rollback_and_reordering_are_exact_in_every_family(name: str, method: str) -> None:
    """The branch alone, driven through a rejected draft and a swap of beams, against one that never saw either."""
    family, recipe = FAMILIES[name], METHODS[method]
    target = Target(family.model(), family.inputs(PROMPTS))
    text = run(family, PROMPTS)

    def logits(*texts: Tensor) -> Tensor:
        branch = Branch(target.model, amateur_inputs(recipe, target))
        return [branch(one) for one in texts][-1]

    drafted = torch.cat([text[:, :2], text.flip(1)[:, :4]], dim=1)
    steps = [text[:, :0], text[:, :1], *(drafted[:, :n] for n in range(2, 7)), text[:, :3], text[:, :4]]
    expected = logits(*(text[:, :n] for n in range(5)))
    torch.testing.assert_close(logits(*steps), expected, rtol=1e-4, atol=2e-4)

    beams = text.repeat_interleave(2, dim=0)
    other = torch.cat([beams[:, :2], beams.flip(1)[:, :2]], dim=1)
    grown = torch.stack([beams[0, :4], other[1, :4], beams[2, :4], other[3, :4]])
    swapped = torch.cat([grown[[1, 0, 3, 2]], beams[:, 4:5]], dim=1)
    walked = logits(*(grown[:, :n] for n in range(5)), swapped)
    straight = logits(*(swapped[:, :n] for n in range(6)))
    torch.testing.assert_close(walked, straight, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_rejected_token_is_forgotten_though_the_text_has_grown(name: str) -> None:
    """Where the step after a rejection is decided, the branch next hears of a longer text that is not a continuation."""
    family = FAMILIES[name]
    target = Target(family.model(), family.inputs(PROMPTS[:1]))
    amateur = amateur_inputs(METHODS["m3id"], target)

    def logits(*texts: list[int]) -> Tensor:
        branch = Branch(target.model, amateur)
        return [branch(torch.tensor([text], dtype=torch.long)) for text in texts][-1]

    straight = logits([], [6], [6, 7])
    torch.testing.assert_close(logits([], [5], [6, 7]), straight, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits([], [5], [5, 7]), straight, atol=0.1)


@pytest.mark.parametrize(
    "recipe", [VCD(alpha=4.0, beta=0.3, noise_step=999), M3ID(decay=0.7, cutoff=0.3)], ids=str
)
@pytest.mark.parametrize("how", ["prompt_lookup", "draft_model"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_drafts_with_decided_steps_in_between(name: str, how: str, recipe: Any) -> None:
    family = FAMILIES[name]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}
    drafts: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if how == "draft_model":
        drafts = {"assistant_model": family.model()}
    for prompt in ([1, *[10, 11, 12] * 4], [1, *[20, 21] * 5], [1, 30, 31, 30, 31, 32]):
        plain = run(family, [prompt], fresh(family, recipe, [prompt]), **options)
        with attached(family.model(), family.inputs([prompt]), recipe, fused=False) as processors:
            assert torch.equal(run(family, [prompt], *processors, **options, **drafts), plain)


@pytest.mark.parametrize("method", METHODS)
def test_return_sequences_and_early_ends(method: str) -> None:
    family, recipe = FAMILIES["qwen2_5_vl"], METHODS[method]
    options: dict[str, Any] = {
        "do_sample": True,
        "num_return_sequences": 3,
        "min_new_tokens": 1,
        "eos_token_id": list(range(3, 30)),
    }
    reference = run(family, PROMPTS, Recomputed(family, recipe, PROMPTS), use_cache=False, **options)
    assert torch.equal(run(family, PROMPTS, fresh(family, recipe, PROMPTS), **options), reference)
    ends = (reference == 0).any(-1)
    assert 0 < ends.sum() < len(ends), "some sequences end early and some do not"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("options", [{"prefill_chunk_size": 4}, {"cache_implementation": "static"}], ids=str)
def test_chunked_prefill_and_static_cache(options: dict[str, Any], name: str, method: str) -> None:
    family, recipe = FAMILIES[name], METHODS[method]
    if not torch.equal(
        run(family, PROMPTS, do_sample=False, **options), run(family, PROMPTS, do_sample=False)
    ):
        pytest.skip(f"this release of transformers gives other tokens under {options} by itself")
    plain = run(family, PROMPTS, fresh(family, recipe, PROMPTS), do_sample=False)
    assert torch.equal(
        run(family, PROMPTS, fresh(family, recipe, PROMPTS), do_sample=False, **options), plain
    )


@pytest.mark.parametrize("method", METHODS)
def test_streaming(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    family, recipe, one = FAMILIES["llava"], METHODS[method], PROMPTS[:1]

    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(f"<{int(i)}>" for i in torch.as_tensor(ids).flatten())

    alone = run(family, one, fresh(family, recipe, one), do_sample=False)
    run(
        family,
        one,
        fresh(family, recipe, one),
        do_sample=False,
        streamer=TextStreamer(Words(), skip_prompt=True),
    )
    assert capsys.readouterr().out.strip() == "".join(f"<{i}>" for i in alone[0].tolist())


@pytest.mark.parametrize("method", METHODS)
def test_positions_given_by_the_caller_are_kept(method: str) -> None:
    family = FAMILIES["llava"]
    inputs = family.inputs(PROMPTS)
    positions = inputs["attention_mask"].cumsum(-1) - 1
    inputs["position_ids"] = positions.clamp(min=0)
    given = family.model().generate(
        **inputs, **PLAIN, logits_processor=[METHODS[method].processor(family.model(), inputs)]
    )
    assert torch.equal(
        given[:, positions.shape[1] :], run(family, PROMPTS, fresh(family, METHODS[method], PROMPTS))
    )


def test_no_vision_tower_for_an_amateur_without_a_picture() -> None:
    family = FAMILIES["llava"]
    calls = []
    tower = family.model().model.vision_tower
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        run(family, PROMPTS, fresh(family, METHODS["m3id"], PROMPTS))
        assert len(calls) == 1
        run(family, PROMPTS, fresh(family, METHODS["vcd"], PROMPTS))
        assert len(calls) == 3
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rope_deltas_are_those_of_the_main_prompt(name: str) -> None:
    family = FAMILIES[name]
    run(family, PROMPTS)
    before = family.model().model.rope_deltas.clone()
    run(family, PROMPTS, fresh(family, METHODS["m3id"], PROMPTS))
    assert torch.equal(family.model().model.rope_deltas, before)


OTHERS = {
    "prompt": ([[*prompt, 30, 31, 32] for prompt in PROMPTS], 0),
    "picture": (PROMPTS, 1),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_another_prompt_or_picture_as_the_amateur(name: str, what: str) -> None:
    """A branch takes whatever inputs a method gives it: here a longer prompt, or somebody else's picture."""
    family = FAMILIES[name]
    prompts, seed = OTHERS[what]

    class Other(VCD):
        def parts(self, target: Target) -> Iterator[Contrast]:
            for part in super().parts(target):
                yield replace(part, views=[Given(lambda target: family.inputs(prompts, seed=seed))])

    recipe = Other(alpha=3.0, beta=0.0)

    class Reference(Recomputed):
        def amateur(self, index: int) -> dict[str, Any]:
            return family.row(prompts, index, seed=seed)

    for options in MODES.values():
        reference = run(family, PROMPTS, Reference(family, recipe, PROMPTS), **options)
        assert torch.equal(run(family, PROMPTS, fresh(family, recipe, PROMPTS), **options), reference)
        assert not torch.equal(run(family, PROMPTS, **options), reference)


def test_a_processor_serves_one_generation() -> None:
    family = FAMILIES["llava"]
    for options in ({}, {"num_beams": 2}):
        prompts = PROMPTS[:1]
        processor = fresh(family, METHODS["vcd"], prompts)
        run(family, prompts, processor, **options)
        with pytest.raises(ProcessorReused, match="build a new one"):
            run(family, prompts, processor, **options)


@pytest.mark.parametrize("how", ["prompt_lookup", "draft_model"])
def test_a_bare_processor_refuses_drafts_by_name(how: str) -> None:
    """It is told nothing of the call of ``generate``, and cannot tell drafts from a second generation."""
    family, prompts = FAMILIES["llava"], [[1, *[10, 11, 12] * 4]]
    drafts: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if how == "draft_model":
        drafts = {"assistant_model": family.model()}
    with pytest.raises(ProcessorReused, match=r"drafts of assisted decoding.*mitigate"):
        run(family, prompts, fresh(family, METHODS["vcd"], prompts), do_sample=False, **drafts)


def test_a_processor_serves_its_own_prompt() -> None:
    family = FAMILIES["llava"]
    with pytest.raises(ProcessorReused, match="very inputs"):
        run(family, PROMPTS, fresh(family, METHODS["vcd"], PROMPTS[:1]))
    other = [[1, 10, 11, 12, 14], [1, 20, 21]]
    with pytest.raises(ProcessorReused, match="very inputs"):
        run(family, PROMPTS, fresh(family, METHODS["m3id"], other))


def test_scores_are_not_changed_in_place_and_keep_their_dtype() -> None:
    family = FAMILIES["llava"]
    ids = family.inputs(PROMPTS)["input_ids"]
    for dtype in (torch.float32, torch.bfloat16):
        scores = torch.randn(2, 99, dtype=dtype)
        before = scores.clone()
        out = fresh(family, METHODS["vcd"], PROMPTS)(ids, scores)
        assert out.dtype == dtype
        assert torch.equal(scores, before)
        assert not torch.equal(out, before)


def test_a_ruled_out_token_stays_ruled_out() -> None:
    expert = torch.tensor([[1.0, -torch.inf, 0.5]])
    amateur = torch.tensor([[0.0, -torch.inf, 9.0]])
    assert contrast(expert, amateur, strength=2.0).tolist() == [[3.0, -torch.inf, -16.5]]


def test_two_methods_compose_in_order() -> None:
    family = FAMILIES["llava"]
    a, b = METHODS["vcd"], METHODS["m3id"]
    both = run(family, PROMPTS, fresh(family, a, PROMPTS), fresh(family, b, PROMPTS))
    with mitigate(family.model(), a, b):
        assert torch.equal(run(family, PROMPTS), both)
    with mitigate(family.model(), a), mitigate(family.model(), b):
        assert torch.equal(run(family, PROMPTS), both)
    assert not torch.equal(run(family, PROMPTS, fresh(family, a, PROMPTS)), both)


def test_parents_are_found_by_prefix() -> None:
    seen = torch.tensor([[5, 6], [5, 7], [8, 8], [9, 9]])
    now = torch.tensor([[5, 7, 1], [5, 7, 2], [9, 9, 3], [8, 8, 4]])
    parents, keep = match_prefixes(seen, now, prompts=2)
    assert parents.tolist() == [1, 1, 3, 2]
    assert keep == 2
    # a rejected draft: the text is shorter than before, and its last token is new
    parents, keep = match_prefixes(torch.tensor([[5, 6, 7]]), torch.tensor([[5, 9]]), prompts=1)
    assert (parents.tolist(), keep) == ([0], 1)
    # rows never take a parent from another prompt, even one that fits better
    parents, _ = match_prefixes(
        torch.tensor([[1, 1], [2, 2]]), torch.tensor([[2, 2, 3], [1, 1, 3]]), prompts=2
    )
    assert parents.tolist() == [0, 1]


def test_placeholder_ids_are_not_sampled_here() -> None:
    assert IMAGE in SPECIAL  # the tests' own ground: a sampled placeholder would break the uncached reference


@torch.no_grad()
def test_pixels_by_another_name_are_noised_and_seen() -> None:
    """Fuyu's pixels are called ``image_patches``, and say nothing of where a picture ends."""
    sizes: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = FuyuConfig(
        text_config={"model_type": "persimmon", **sizes},
        patch_size=2,
        num_channels=3,
        image_token_id=3,
        **sizes,
    )
    model = FuyuForCausalLM(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(0, 0.3)
    ids = torch.tensor([[3, 3, 5, 3, 3, 5, 6, 7, 8], [0, 3, 3, 3, 5, 6, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "image_patches": torch.randn(7, 12)}
    target = Target(model, inputs)
    assert list(target.pixels) == ["image_patches"]
    seen = amateur_inputs(VCD(noise_step=999), target)
    assert (seen["image_patches"] != inputs["image_patches"]).all()
    branch = Branch(model, seen)
    assert branch.sees
    assert torch.equal(branch.place()["image"], ids == 3)
    assert not Branch(model, {key: value for key, value in seen.items() if key != "image_patches"}).sees
    recipe = VCD(alpha=2.0, beta=0.0, noise_step=999)
    with attached(model, inputs, recipe) as processors:
        out = model.generate(
            **inputs,
            max_new_tokens=1,
            logits_processor=processors,
            output_scores=True,
            return_dict_in_generate=True,
        )
    expert, amateur = (model(**given).logits[:, -1] for given in (inputs, seen))
    expected = (3 * expert - 2 * amateur).log_softmax(-1)
    torch.testing.assert_close(out.scores[0], expected, atol=1e-4, rtol=1e-4)
    assert (expected - expert.log_softmax(-1)).abs().max() > 0.1
