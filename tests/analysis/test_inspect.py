"""Inspection: methods are tried, not looked up; what is said is what the model does."""

from __future__ import annotations

from typing import Any

import planted
import pytest
import torch
import transformers as tf
from families import BREAK, END, FAMILIES
from standin import WORDS, standin, tokenizer_of

from keepsight import InputError, NeedsCalibration, Target, attached, methods
from keepsight.analysis.inspect import (
    Inspection,
    grey_picture,
    inspect_model,
    take_notes,
    try_methods,
    unnamed_markers,
)

PROMPT = [1, 10, 11, 12]


def by_name(trials: Any) -> dict[str, Any]:
    return {trial.method: trial for trial in trials}


@pytest.mark.parametrize("name", planted.NAMES)
def test_methods_run_or_say_why_not(name: str) -> None:
    trials = by_name(try_methods(planted.build(name), planted.prompt(name)))
    assert list(trials) == list(methods())
    assert {one for one, trial in trials.items() if not trial.runs} == {"var"}
    assert trials["var"].missing
    assert "keepsight calibrate" in trials["var"].why_not


def test_a_shallow_model_is_too_short_for_sla() -> None:
    family = FAMILIES["llava"]
    trials = by_name(try_methods(family.model(), family.inputs([PROMPT])))
    assert not trials["sla"].runs
    assert "2 layers" in trials["sla"].why_not
    assert trials["vhr"].runs


def test_cross_attention_takes_all_but_what_edits_attention_to_the_picture() -> None:
    family = FAMILIES["mllama"]
    trials = by_name(try_methods(family.model(), family.inputs([PROMPT])))
    refused = {one for one, trial in trials.items() if "cross-attention" in (trial.why_not or "")}
    assert refused == {"pai", "var"}
    assert not trials["var"].missing
    assert trials["m3id"].runs
    assert any("layers 1 see the picture by cross-attention" in note for note in notes_of("mllama"))


def test_eager_attention_is_told_and_refused() -> None:
    model = planted.build("llava")
    model.set_attn_implementation("eager")
    inputs = planted.prompt("llava")
    trials = by_name(try_methods(model, inputs))
    assert {one for one, trial in trials.items() if "not 'eager'" in (trial.why_not or "")} == {"pai", "vhr"}
    assert trials["m3id"].runs
    assert any("attention eager" in note for note in take_notes(model, standin()[1], inputs))


def test_what_a_model_raises_is_an_answer_and_the_model_stays_as_it_was() -> None:
    model = planted.build("llava")
    inputs = planted.prompt("llava")
    before = model(**inputs).logits
    short = {**inputs, "pixel_values": torch.zeros(1, 3, 8, 8)}
    trials = by_name(try_methods(model, short))
    assert not any(trial.runs for trial in trials.values())
    assert "unexpected ValueError" in trials["vcd"].why_not
    assert torch.equal(model(**inputs).logits, before)


def test_notes_say_where_contrast_branches_run_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = (note for note in notes_of("mllama") if "passes of their own" in note)
    assert "MllamaTextModel is not among the decoders it was verified on" in note
    (note,) = (note for note in notes_of("llava") if "passes of their own" in note)
    assert "weights in its layers" in note
    monkeypatch.setattr("keepsight.engines.hf.fused_pass.SMALL", 0)
    assert not any("passes of their own" in note for note in notes_of("llava"))


def notes_of(name: str) -> tuple[str, ...]:
    family = FAMILIES[name]
    return take_notes(family.model(), standin()[1], family.inputs([PROMPT]))


def test_notes_on_sliding_windows() -> None:
    (note,) = (note for note in notes_of("gemma3") if "sliding" in note)
    assert "1 of 2 layers see a sliding window of 8 tokens" in note


def test_notes_on_half_precision_without_a_gpu() -> None:
    model = planted.build("llava").to(torch.bfloat16)
    assert any("torch.bfloat16 on a CPU is slow" in note for note in take_notes(model, None, None))
    assert take_notes(planted.build("llava"), None, None) == ()


def test_markers_that_the_configuration_does_not_name() -> None:
    """Mistral 3 lays row separators between the pieces of a picture that only its processor knows."""
    tokenizer = tokenizer_of(tuple(f"w{i}" for i in range(4, 98)))
    tokenizer.add_special_tokens({"extra_special_tokens": [f"w{i}" for i in (90, BREAK, END)]})
    family = FAMILIES["mistral3"]
    assert unnamed_markers(Target(family.model(), family.inputs([PROMPT])), tokenizer) == [END, BREAK]
    family = FAMILIES["qwen2_vl"]  # names both of its markers
    assert unnamed_markers(Target(family.model(), family.inputs([PROMPT])), tokenizer) == []
    family = FAMILIES["mistral3"]
    processor = type("Processor", (), {"tokenizer": tokenizer})
    notes = take_notes(family.model(), processor, family.inputs([PROMPT]))
    assert any(f"also_drop={END}+{BREAK}" in note for note in notes)


@pytest.fixture(scope="module")
def found() -> Inspection:
    model, processor = standin()
    pictures = {"64x64": grey_picture(64, 64), "200x100": grey_picture(200, 100)}
    return inspect_model(model, processor, pictures, "a cat")


class TestWithAProcessor:
    def test_facts(self, found: Inspection) -> None:
        assert found.model_class == "LlavaForConditionalGeneration"
        assert (found.family, found.decoder, found.attention) == ("llava", "LlamaModel", "sdpa")
        assert (found.layers, found.heads, found.kv_heads, found.hidden_size) == (6, 8, 8, 128)
        assert found.image_token == (3, "<image>")
        assert (found.dtype, found.devices) == ("float32", ("cpu",))

    def test_tokens_of_pictures(self, found: Inspection) -> None:
        _, processor = standin()
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]}],
            add_generation_prompt=True,
        )
        words = len(processor.tokenizer(text)["input_ids"]) - 1
        assert found.pictures == {"64x64": (64, 64 + words), "200x100": (64, 64 + words)}

    def test_every_method_is_tried(self, found: Inspection) -> None:
        assert {trial.method: trial.runs for trial in found.trials} == {
            name: name != "var" for name in methods()
        }
        model, processor = standin()
        inputs = processor(text="<image> a cat", images=grey_picture(64, 64), return_tensors="pt")
        for trial in found.trials:
            recipe = methods()[trial.method]()
            if trial.runs:
                with attached(model, inputs, recipe) as processors:
                    model.generate(**inputs, logits_processor=processors, max_new_tokens=2)
            else:
                with pytest.raises(NeedsCalibration), attached(model, inputs, recipe):
                    pass

    def test_a_prompt_without_a_template_is_made_by_hand(self) -> None:
        model, processor = standin()
        processor.chat_template = None
        found = inspect_model(model, processor, {"64x64": grey_picture(64, 64)}, "a cat")
        assert found.pictures["64x64"][0] == 64
        assert [note for note in found.notes if "passes of their own" not in note] == []

    def test_a_processor_that_fails_leaves_the_model_to_be_told(self) -> None:
        model, processor = standin()

        class Broken(type(processor)):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> None:
                raise KeyError("no such thing")

        processor.__class__ = Broken
        found = inspect_model(model, processor, {"64x64": grey_picture(64, 64)}, "a cat")
        assert found.layers == 6
        assert found.pictures == {}
        assert {trial.runs for trial in found.trials} == {False}
        assert all("KeyError" in (trial.why_not or "") for trial in found.trials)
        assert "no such thing" in found.notes[0]

    def test_no_pictures(self) -> None:
        with pytest.raises(InputError, match="at least one picture"):
            inspect_model(*standin(), {}, "a cat")


def instruct_blip() -> tuple[Any, Any]:
    """A tiny InstructBLIP, whose generate() is its own, and its processor."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = tf.InstructBlipConfig(
        vision_config={**small, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "vocab_size": 99, "encoder_hidden_size": 32},
        text_config={**small, "model_type": "llama", "vocab_size": 99},
        num_query_tokens=4,
        image_token_index=3,
    )
    known = tokenizer_of(WORDS)
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=known._tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    pictures = BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = tf.InstructBlipProcessor(pictures, tokenizer, tokenizer_of(WORDS), num_query_tokens=4)
    return tf.InstructBlipForConditionalGeneration(config).eval(), processor


def test_a_model_that_no_method_supports() -> None:
    found = inspect_model(*instruct_blip(), {"16x16": grey_picture(16, 16)}, "a cat")
    assert found.family == "instructblip"
    assert found.pictures == {"16x16": (4, 4 + 2)}
    assert (found.layers, found.image_token) == (2, (3, "<image>"))
    assert len(found.trials) == len(methods())
    assert all("generate() of its own" in (trial.why_not or "") for trial in found.trials)


def test_grey() -> None:
    picture = grey_picture(3, 2)
    assert picture.size == (3, 2)
    assert picture.tobytes() == bytes([128] * 3 * 6)
