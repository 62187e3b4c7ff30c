"""The ``with`` door: what it takes, what it refuses, and that nothing stays behind."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor

from keepsight import (
    M3ID,
    PAI,
    VCD,
    VHR,
    ConcurrentUse,
    InputError,
    KeepsightError,
    NoImageTokens,
    UnknownMethod,
    UnknownParameter,
    UnsupportedModel,
    attached,
    mitigate,
)
from keepsight.errors import NeedsBlock

FAMILY = FAMILIES["llava"]
PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "suppress_tokens": SPECIAL,
    "do_sample": False,
}


def state(model: Any) -> tuple[Any, ...]:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks, sorted(vars(model)), [tensor.clone() for tensor in model.state_dict().values()]


def unchanged(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[:2] == after[:2] and all(
        torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True)
    )


def test_both_doors_agree() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    by_processor = model.generate(
        **inputs, **OPTIONS, logits_processor=[M3ID(decay=0.5).processor(model, inputs)]
    )
    with mitigate(model, M3ID(decay=0.5)) as same:
        assert same is model
        by_block = model.generate(**inputs, **OPTIONS)
        positional = model.generate(
            inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}, **OPTIONS
        )
    with mitigate(model, "m3id:decay=0.5"):
        by_spec = model.generate(**inputs, **OPTIONS)
    assert torch.equal(by_processor, by_block)
    assert torch.equal(by_processor, positional)
    assert torch.equal(by_processor, by_spec)
    assert not torch.equal(by_processor, model.generate(**inputs, **OPTIONS))


def test_the_model_is_as_before_after_the_block_and_after_an_error_in_it() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    before, logits = state(model), model(**inputs).logits
    with mitigate(model, VCD(alpha=3)):
        model.generate(**inputs, **OPTIONS)
    assert unchanged(before, state(model))

    class Breaks(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), mitigate(model, VCD(alpha=3)):
        model.generate(**inputs, **OPTIONS, logits_processor=[Breaks()])
    assert unchanged(before, state(model))
    assert torch.equal(model(**inputs).logits, logits)


def test_nested_blocks_unwind_and_an_existing_wrapper_is_kept() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    own = model.generate
    model.generate = own  # somebody else's instance attribute

    def said(*methods: Any) -> Any:
        with attached(model, inputs, *methods) as processors:
            return own(**inputs, **OPTIONS, logits_processor=processors)

    first, second = VCD(alpha=4.0, beta=0.0, noise_step=999), M3ID(decay=0.7, cutoff=0.0)
    try:
        with mitigate(model, first):
            with mitigate(model, second):
                assert torch.equal(model.generate(**inputs, **OPTIONS), said(first, second))
            assert torch.equal(model.generate(**inputs, **OPTIONS), said(first))
        assert model.generate is own
        assert len({str(said(*methods)) for methods in ((), (first,), (first, second))}) == 3
    finally:
        del model.generate


def test_blocks_that_do_not_nest_leave_nothing_behind() -> None:
    """Two threads may open and close theirs in any order."""
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    first, second = VCD(alpha=4.0, beta=0.0, noise_step=999), M3ID(decay=0.7, cutoff=0.0)
    plain = model.generate(**inputs, **OPTIONS)
    with mitigate(model, second):
        alone = model.generate(**inputs, **OPTIONS)
    one, other = mitigate(model, first), mitigate(model, second)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert torch.equal(model.generate(**inputs, **OPTIONS), alone)
    other.__exit__(None, None, None)
    assert "generate" not in vars(model)
    assert torch.equal(model.generate(**inputs, **OPTIONS), plain)
    assert not torch.equal(alone, plain)


def test_the_outermost_block_decides_how_branches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight import api as doors

    asked: list[Any] = []
    usual = doors.attached

    def noting(*args: Any, fused: Any) -> Any:
        asked.append(fused)
        return usual(*args, fused=fused)

    monkeypatch.setattr(doors, "attached", noting)
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    for outer, inner in (("auto", False), (False, True), (True, "auto"), ("auto", "auto")):
        with mitigate(model, VCD(), fused=outer), mitigate(model, M3ID(), fused=inner):
            model.generate(**inputs, **OPTIONS)
    assert asked == [False, False, True, "auto"]


def test_nothing_outlives_a_generation() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    processor = VCD(alpha=3).processor(model, inputs)
    model.generate(**inputs, **OPTIONS, logits_processor=[processor])
    ghost = weakref.ref(processor.branches[0]._cache)  # type: ignore[attr-defined]
    del processor
    gc.collect()
    assert ghost() is None


def test_callers_own_processors_come_first() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    seen = []

    class Records(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(scores.clone())
            return scores

    with mitigate(model, VCD(alpha=3)):
        model.generate(**inputs, **OPTIONS, logits_processor=[Records()])
    plain = model.generate(**inputs, **OPTIONS, output_logits=True, return_dict_in_generate=True)
    kept = [i for i in range(99) if i not in SPECIAL and i != 2]
    torch.testing.assert_close(seen[0][:, kept], plain.logits[0][:, kept])


def test_an_empty_block_changes_nothing() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with mitigate(model):
        same = model.generate(**inputs, **OPTIONS)
    assert torch.equal(same, model.generate(**inputs, **OPTIONS))


def test_a_prompt_without_a_picture() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with mitigate(model, M3ID()), pytest.raises(NoImageTokens, match="the prompt holds no picture"):
        model.generate(input_ids=torch.tensor([[1, 5, 6]]), **OPTIONS)
    inputs["input_ids"] = torch.where(torch.arange(2)[:, None] == 1, 5, inputs["input_ids"])
    with mitigate(model, VCD()), pytest.raises(NoImageTokens, match="row 1 of the batch"):
        model.generate(**inputs, **OPTIONS)


def test_models_that_cannot_be_driven() -> None:
    text = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    with pytest.raises(UnsupportedModel, match="text-only"), mitigate(text, M3ID()):
        text.generate(input_ids=torch.tensor([[1, 5, 6]]), max_new_tokens=2, pad_token_id=0)
    with (
        pytest.raises(UnsupportedModel, match="not a transformers model"),
        mitigate(torch.nn.Linear(2, 2), M3ID()),
    ):  # type: ignore[arg-type]
        pass
    with pytest.raises(UnsupportedModel, match="language-model head"):
        M3ID().processor(FAMILY.model().model, FAMILY.inputs(PROMPTS))


def test_bad_arguments() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with pytest.raises(UnknownMethod), mitigate(model, "m3di"):
        pass
    with pytest.raises(InputError, match="is needed here"), mitigate(model, 3):  # type: ignore[arg-type]
        pass
    with mitigate(model, M3ID()), pytest.raises(InputError, match="continuous batching"):
        model.generate(**inputs, cache_implementation="paged")
    with pytest.raises(InputError, match="no input_ids"):
        M3ID().processor(model, {"pixel_values": inputs["pixel_values"]})
    with pytest.raises(InputError, match="return_tensors"):
        M3ID().processor(model, {**inputs, "input_ids": inputs["input_ids"].tolist()})
    with pytest.raises(KeepsightError, match="inputs_embeds"):
        M3ID().processor(model, {**inputs, "inputs_embeds": torch.zeros(1)})
    with pytest.raises(UnsupportedModel, match="'surprise'"):
        M3ID().processor(model, {**inputs, "surprise": torch.zeros(1)})


def test_two_threads_cannot_edit_one_model_at_once() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    found: list[BaseException] = []

    def other() -> None:
        try:
            with attached(model, inputs, VHR(layers=(1,))):
                found.append(AssertionError("should have been refused"))
        except ConcurrentUse as error:
            found.append(error)

    with attached(model, inputs, VHR(layers=(1,))):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [type(error) for error in found] == [ConcurrentUse]
    with attached(model, inputs, VHR(layers=(1,))) as processors:
        assert processors == []


def test_a_contrast_beside_another_thread_s_edits_is_refused() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    entered, done = threading.Event(), threading.Event()

    def hold() -> None:
        with attached(model, inputs, VHR(layers=(0,))):
            entered.set()
            assert done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(20)
        for fused in (False, "auto", True):
            with pytest.raises(ConcurrentUse, match="twin"), mitigate(model, M3ID(), fused=fused):
                model.generate(**inputs, **OPTIONS)
    finally:
        done.set()
        holder.join()
    with mitigate(model, M3ID()):
        model.generate(**inputs, **OPTIONS)


def test_wrong_first_uses_are_answered_with_the_right_call() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with pytest.raises(InputError, match=r"model comes first: write mitigate\(model, M3ID\(\)\)"):
        mitigate(M3ID(), model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"VCD is the class of a method: pass a recipe, VCD\(\)"):
        mitigate(model, VCD)  # type: ignore[arg-type]
    with (
        pytest.raises(InputError, match=r"write attached\(model, inputs, M3ID\(\)\)"),
        attached(model, VHR()),
    ):  # type: ignore[arg-type]
        pass
    with pytest.raises(InputError, match=r"logits_processor=\[VCD\(…\)\.processor\(model, inputs\)\]"):
        model.generate(**inputs, **OPTIONS, logits_processor=[VCD()])
    with pytest.raises(NeedsBlock, match=r"vhr runs passes before.*with mitigate\(model, VHR\("):
        VHR().processor(model, inputs)
    with pytest.raises(NeedsBlock, match="pai changes attn_scores"):
        PAI().processor(model, inputs)
    with pytest.raises(UnknownParameter, match="did you mean 'decay'"):
        M3ID(decy=1)  # type: ignore[call-arg]
    for error in (InputError, NeedsBlock, UnknownParameter):
        assert issubclass(error, KeepsightError)


def test_a_block_that_is_not_entered_warns() -> None:
    with pytest.warns(UserWarning, match="without `with`"):
        mitigate(FAMILY.model(), M3ID())
    block = mitigate(FAMILY.model(), M3ID())
    with block:
        pass
    with pytest.raises(InputError, match="entered once"), block:
        pass


@pytest.mark.parametrize("method", ["vcd", "m3id", "vhr", "sla", "m3id:decay=0,cutoff=0"])
def test_prompts_that_no_method_can_use(method: str) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    without = {key: value for key, value in inputs.items() if key != "pixel_values"}
    with pytest.raises(NoImageTokens, match="no pixel_values"), attached(model, without, method):
        pass
    right = {**inputs, "attention_mask": inputs["attention_mask"].flip(-1)}
    with pytest.raises(InputError, match="padding_side='left'"), attached(model, right, method):
        pass
    assert "_keepsight_in_place" not in vars(model)


def test_compiling_is_off_where_the_model_s_own_configuration_asks_for_a_static_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a configuration that is passed along leaves open is taken from the model's. On the CPU nothing is compiled."""
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    asked, may = [], type(model)._valid_auto_compile_criteria

    def criteria(self: Any, kwargs: Any, config: Any) -> bool:
        asked.append((config.cache_implementation, config.disable_compile))
        return bool(may(self, kwargs, config))

    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", criteria)
    monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    try:
        with mitigate(model, M3ID()):
            model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2, pad_token_id=0))
    finally:
        vars(model).pop("_previous_max_cache_length", None)  # transformers' own
    assert set(asked) == {("static", True)}


def test_ways_to_generate_past_the_methods_are_refused() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    for name in ("generate_batch", "init_continuous_batching"):
        with mitigate(model, M3ID()), pytest.raises(InputError, match=f"{name} batches requests by itself"):
            getattr(model, name)(inputs=[[1, 2]])
        assert name not in vars(model)
    with mitigate(model, M3ID()), pytest.raises(InputError, match="assistant_ensemble_weight mixes"):
        model.generate(**inputs, **OPTIONS, assistant_model=model, assistant_ensemble_weight=0.5)
