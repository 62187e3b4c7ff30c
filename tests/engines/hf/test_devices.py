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
