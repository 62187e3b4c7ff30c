"""Every type that transformers maps to image-text-to-text generation is built tiny, and generates, or is refused by name."""

from __future__ import annotations

import re
from contextlib import ExitStack

import mapped
import pytest
import torch
from tiny_configs import SPECIAL, tiny_config

from keepsight import M3ID, PAI, SLA, VAR, VCD, VHR, VSV, KeepsightError, mitigate

NOT_BUILT = {
    **dict.fromkeys(
        ("blip", "blip-2", "diffusion_gemma", "instructblip", "instructblipvideo", "janus", "kosmos-2"),
        "generate() of its own",
    ),
    **dict.fromkeys(
        ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"),
        "encoder-decoder",
    ),
    **dict.fromkeys(("evolla", "git", "idefics", "kosmos-2.5", "mistral4"), "names no image token"),
    "pi0": "generates no text",
}
"""Types that methods of this library cannot run on, and why."""
OTHERWISE = {
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), "timm's networks, which have one size"),
    "llama4": "has no attribute 'image_outputs'",
}
"""Types that are not built for reasons that have nothing to do with methods; the last is a fault of transformers 5.24."""


METHODS_RUN_ON = [
    pytest.param(name, marks=() if name in mapped.FAST else pytest.mark.slow)
    for name in (*mapped.names(), *mapped.variants())
    if name not in NOT_BUILT
]
"""The quick subset in the suite, and all others where what is slow is run."""


def _built(name: str) -> mapped.Built:
    try:
        return mapped.build(name)
    except mapped.NotBuilt as error:
        if OTHERWISE.get(name, "\n") not in str(error):
            raise
        pytest.skip(f"{name} cannot be built here: {error}")


@pytest.mark.parametrize("name", METHODS_RUN_ON)
def test_the_picture_matters_and_the_model_generates(name: str) -> None:
    built = _built(name)
    assert mapped.picture_effect(built.model, built.layout, built.placeholders) > 0.01
    assert (built.inputs["input_ids"] == built.image_token).sum() == built.placeholders
    assert all(built.inputs[key].is_floating_point() for key in built.pictures)
    for inputs in (built.inputs, built.second()):
        prompt = inputs["input_ids"].shape[1]
        written = built.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, prompt:]
        assert written.shape == (6,)
        assert not set(written.tolist()) & set(SPECIAL)


NO_BATCH = {"hunyuan_vl", "minimax_m3_vl:sparse"}
"""HunYuan's positions count the pictures of the whole batch; MiniMax's blocks of keys begin at the padding."""


@pytest.mark.parametrize("name", METHODS_RUN_ON)
def test_a_row_of_a_padded_batch_is_the_row_alone(name: str) -> None:
    built = _built(name)
    both = built.batch()
    if name in NO_BATCH:
        assert both is None
        assert built.why_no_batch is not None
        assert "row 1 of the batch differs" in built.why_no_batch
        return
    assert both is not None, built.why_no_batch
    together, rows = both
    assert together["attention_mask"][1, 0] == 0
    assert [int((together["input_ids"][row] == built.image_token).sum()) for row in range(2)] == [
        built.placeholders
    ] * 2
    assert len(rows) == 2
    assert rows[1]["input_ids"].shape[1] < rows[0]["input_ids"].shape[1]


@pytest.mark.parametrize("name", [name for name in NOT_BUILT if name in mapped.names()])
def test_what_methods_cannot_run_on_is_refused_by_name(name: str) -> None:
    """Before anything is generated: an answer would be the model's own under the method's name."""
    with pytest.raises(mapped.NotBuilt, match=re.escape(NOT_BUILT[name])):
        mapped.build(name)
    model = mapped.make(name)
    inputs = {"input_ids": torch.tensor([[1, 140, 5, 9]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    if not hasattr(model, "generate"):
        model.generate = pytest.fail
    for method in (VCD(), M3ID(), PAI(), VAR(dims=(3,)), VHR(), VSV(), SLA(window=2)):
        with pytest.raises(KeepsightError, match=type(model).__name__), mitigate(model, method):
            model.generate(**inputs, max_new_tokens=2)


def test_builds_are_made_once_and_leave_the_random_state() -> None:
    before = torch.random.get_rng_state()
    built = mapped.build(mapped.FAST[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert mapped.build(mapped.FAST[0]) is built


def test_variants_differ_from_their_types() -> None:
    for name in set(mapped.variants()) - set(mapped.REPAIRS):
        variant, plain = (tiny_config(one).get_text_config() for one in (name, name.partition(":")[0]))
        assert variant.to_dict() != plain.to_dict(), name


def test_the_layers_in_the_middle_of_inkling2_loop_run_twice() -> None:
    built = mapped.build("inkling2_loop")
    calls: list[int] = []
    with ExitStack() as stack, torch.no_grad():
        for index, layer in enumerate(built.model.get_decoder().layers):
            stack.callback(layer.register_forward_hook(lambda *_, index=index: calls.append(index)).remove)
        built.model(**built.inputs)
    assert calls == [0, 1, 2, 1, 2, 3]


def test_llama4_is_repaired_because_its_own_forward_raises() -> None:
    """With a picture and without, so that the fault has nothing to do with tiny models or with pictures."""
    text, raised = {"input_ids": torch.tensor([[1, 7, 5]])}, ""
    try:
        mapped.make("llama4")(**text)
    except AttributeError as error:
        raised = str(error)
    if not raised:
        pytest.skip("this version of transformers does not have the fault")
    assert "image_outputs" in raised
    assert mapped.make("llama4:repaired")(**text).logits.shape[:2] == (1, 3)
    assert not hasattr(mapped.make("llama4").language_model(**text), "image_outputs")
