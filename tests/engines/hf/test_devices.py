"""Where weights lie, and in which precision: both branches give the same tokens, or a model is refused beforehand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from families import FAMILIES, SPECIAL
from strong import STRONG

from keepsight import InputError, UnsupportedModel, methods, mitigate

FAMILY = FAMILIES["llava"]
INPUTS = FAMILY.inputs([[1, 10, 11, 12, 13], [1, 20, 21]])
PROMPT = INPUTS["input_ids"].shape[1]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": SPECIAL, "do_sample": False,
}  # fmt: skip
CONTRASTIVE = ("vcd", "m3id", "pai")


def fresh() -> Any:
    return copy.deepcopy(FAMILY.model())


def generate(model: Any, method: str | None, fused: bool | Literal["auto"] = "auto", **options: Any) -> Any:
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value for key, value in INPUTS.items()
    }
    if method is None:
        out = model.generate(**inputs, **OPTIONS, **options)
    else:
        with mitigate(model, STRONG[method], fused=fused):
            out = model.generate(**inputs, **OPTIONS, **options)
    return out[:, PROMPT:].tolist()


def check_branches(model: Any, *, changes: bool = True) -> None:
    """Fused and separate branches agree, and are not simply greedy."""
    greedy = generate(model, None)
    for method in CONTRASTIVE:
        apart = generate(model, method, fused=False)
        assert generate(model, method, fused=True) == apart, method
        assert not changes or apart != greedy, method


def test_weights_offloaded_by_accelerate() -> None:
    from accelerate import cpu_offload

    model = fresh()
    expected = {method: generate(model, method) for method in methods()}
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.lm_head.weight.device.type == "meta", "the weights are to come in layer by layer"
    check_branches(model)
    assert {method: generate(model, method) for method in methods()} == expected


def test_a_model_dispatched_to_one_device() -> None:
    from accelerate import dispatch_model

    model = fresh()
    expected = generate(model, "vcd")
    dispatch_model(model, {"model": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(model, "_hf_hook")
    check_branches(model)
    assert generate(model, "vcd") == expected


def test_a_model_spread_over_places_runs_apart_or_is_refused(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    model = fresh()
    expected = {method: generate(model, method) for method in methods()}
    places = {"model": "cpu", "lm_head": "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    model.hf_device_map = places
    for method in CONTRASTIVE:
        with pytest.raises(UnsupportedModel, match="spread over cpu, disk; pass fused='auto' or False"):
            generate(model, method, fused=True)
    assert {method: generate(model, method) for method in methods()} == expected


def test_bfloat16() -> None:
    check_branches(fresh().bfloat16())


@pytest.mark.parametrize("method", methods())
def test_static_cache(method: str) -> None:
    # On the CPU transformers compiles no step by itself; with a GPU it would
    assert generate(fresh(), method, cache_implementation="static") == generate(fresh(), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vcd", "m3id"])
def test_compiled_steps(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CompileConfig

    monkeypatch.setattr(
        "keepsight.engines.hf.fused_pass.SMALL", 0
    )  # else "auto" would run apart for another reason
    config = CompileConfig()
    vars(config)["_compile_all_devices"] = True
    compiled = generate(fresh(), method, cache_implementation="static", compile_config=config)
    assert compiled == generate(fresh(), method, fused=False)


@pytest.mark.parametrize("method", ["vcd", "m3id"])
def test_shared_passes_refuse_compiled_steps(method: str) -> None:
    from transformers import CompileConfig

    with pytest.raises(InputError, match=f"{method}: a compiled step keeps the model"):
        generate(fresh(), method, True, cache_implementation="static", compile_config=CompileConfig())


def test_int8_by_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = fresh()
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    check_branches(model)


def test_int8_by_quanto() -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    model = fresh()
    quanto.quantize(model.model.language_model, weights=quanto.qint8)
    quanto.freeze(model)
    check_branches(model)


def test_4_bit_by_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    from keepsight.demo.model import PROMPT, checkpoint
    from keepsight.demo.world import scenes
    from keepsight.inference.loading import load
    from keepsight.source.prompts import prepare

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint(), quantization_config=config, device_map="cpu", dtype="float32"
    ).eval()
    assert type(model.model.language_model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    inputs = prepare(load("demo")[1], [scene.image() for scene in scenes("val", 3)], PROMPT)
    greedy = model.generate(**inputs, max_new_tokens=20, do_sample=False).tolist()
    for spec in ("vcd:noise_step=999", "m3id:decay=0.3,cutoff=0.01", "pai:gamma=2.0"):
        said = []
        for fused in (False, True):
            with mitigate(model, spec, fused=fused):
                said.append(model.generate(**inputs, max_new_tokens=20, do_sample=False).tolist())
        assert said[0] == said[1] != greedy, spec


def test_8_bit_by_bitsandbytes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    FAMILY.model().save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu", dtype="float32"
    )
    assert type(model.model.language_model.layers[0].self_attn.q_proj).__name__ == "Linear8bitLt"
    model.eval()
    greedy = generate(model, None)
    for method in CONTRASTIVE:
        assert generate(model, method) == generate(model, method, fused=False) != greedy
        with pytest.raises(UnsupportedModel, match=r"LLM\.int8"):
            generate(model, method, fused=True)
