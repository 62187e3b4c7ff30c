"""Quantised weights, quantised caches and adapters: a method does there what it does in a model of the same weights.

None of the packages is a dependency. ``make quantised`` runs this file in an environment that has them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL
from strong import STRONG

from keepsight import UnsupportedModel, methods, mitigate, parse
from keepsight.demo.model import PROMPT, checkpoint, load
from keepsight.demo.world import scenes
from keepsight.source.prompts import prepare

FAMILY = FAMILIES["llava"]
INPUTS = FAMILY.inputs([[1, 10, 11, 12, 13], [1, 20, 21]])
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": SPECIAL, "do_sample": False,
}  # fmt: skip
CONTRASTIVE = ("m3id", "pai", "vcd")
DEMO = {
    "m3id": "m3id:decay=0.3,cutoff=0.01", "pai": "pai:alpha=2.0,gamma=2.0", "sla": "sla:gamma=0.8,window=5",
    "var": "var:dims=0/1,tau=0.5,ratio=0.0,mass=0.0,fraction=1.0", "vcd": "vcd:noise_step=999,alpha=3.0",
    "vhr": "vhr:alpha=3.0", "vsv": "vsv:strength=0.5",
}  # fmt: skip
"""Settings at which each method changes captions of the demo model."""
every_method = pytest.mark.parametrize("method", sorted(DEMO))
pytestmark = pytest.mark.filterwarnings("ignore")
"""The packages warn of much that is no business of this one."""


def write(model: Any, method: str | None, *, fused: Any = "auto", **options: Any) -> Any:
    """The tokens of a tiny random model."""
    with mitigate(model, *(() if method is None else (STRONG[method],)), fused=fused):
        return model.generate(**INPUTS, **OPTIONS, **options)[:, INPUTS["input_ids"].shape[1] :].tolist()


def caption(model: Any, spec: str | None, *, fused: Any = "auto", **options: Any) -> Any:
    """What ``generate`` returns for three pictures of the demo world."""
    inputs = prepare(load()[1], [scene.image() for scene in scenes("val", 3)], PROMPT)
    options = {"output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 20, **options}
    with mitigate(model, *(() if spec is None else (spec,)), fused=fused):
        return model.generate(**inputs, do_sample=False, **options)


def tokens(model: Any, spec: str | None, **options: Any) -> Any:
    return caption(model, spec, **options).sequences.tolist()


def dequantised(model: Any, plain: Any, weight: Callable[[Any], Any]) -> Any:
    """``plain`` with the weights that a quantised model stands for; at least one must be quantised."""
    linear, count = dict(model.named_modules()), 0
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and (found := weight(linear[name])) is not None:
            module.weight = torch.nn.Parameter(found.detach().float(), requires_grad=False)
            count += 1
    assert count > 0, "nothing is quantised"
    return plain


def of_tensor(module: Any) -> Any:
    """The weight of a layer whose weight is a quantised tensor that knows how to be an ordinary one."""
    quantised = isinstance(module.weight, torch.Tensor) and type(module.weight) not in (
        torch.Tensor, torch.nn.Parameter,
    )  # fmt: skip
    return module.weight.dequantize() if quantised else None


def torchao(config: str, **settings: Any) -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = copy.deepcopy(FAMILY.model())
    quantization.quantize_(model.model.language_model, getattr(quantization, config)(**settings))
    return model


def quanto(name: str) -> Any:
    optimum = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    model = copy.deepcopy(FAMILY.model())
    optimum.quantize(model.model.language_model, weights=getattr(optimum, name))
    optimum.freeze(model)
    return model


def check_weights(model: Any, method: str) -> None:
    """The tokens of a method are those in a model of the weights that quantisation left, and fusing changes nothing."""
    exact = dequantised(model, copy.deepcopy(FAMILY.model()), of_tensor)
    assert write(model, method) == write(exact, method) != write(model, None)
    if method in CONTRASTIVE:
        assert write(model, method, fused=True) == write(model, method, fused=False)


@every_method
def test_torchao_int8_weights(method: str) -> None:
    check_weights(torchao("Int8WeightOnlyConfig"), method)


@every_method
def test_torchao_int4_weights(method: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    granularity = pytest.importorskip("torchao.quantization.granularity")
    assert hasattr(quantization, "IntxWeightOnlyConfig")
    check_weights(
        torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=granularity.PerGroup(16)), method
    )


@every_method
def test_torchao_int8_weights_and_activations(method: str) -> None:
    """Activations are rounded token by token, so that a token's result does not depend on its neighbours."""
    model = torchao("Int8DynamicActivationInt8WeightConfig")
    assert write(model, method) != write(model, None)
    if method in CONTRASTIVE:
        assert write(model, method, fused=True) == write(model, method, fused=False)


@every_method
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_quanto_weights(weights: str, method: str) -> None:
    check_weights(quanto(weights), method)


def bitsandbytes(**settings: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    return AutoModelForImageTextToText.from_pretrained(
        checkpoint(), quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype="float32"
    ).eval()


@every_method
def test_bitsandbytes_nf4(method: str) -> None:
    model = bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    import bitsandbytes as bnb

    def weight(module: Any) -> Any:
        if type(module).__name__ != "Linear4bit":
            return None
        return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)

    exact = dequantised(model, load()[0], weight)
    if method in CONTRASTIVE:
        assert tokens(model, DEMO[method], fused=True) == tokens(model, DEMO[method], fused=False)
    ours, theirs, plain = (
        caption(m, spec) for m, spec in ((model, DEMO[method]), (exact, DEMO[method]), (model, None))
    )
    assert ours.sequences.tolist() != plain.sequences.tolist()
    # The kernel for 4 bits on the CPU multiplies in less than float32: scores are compared, and tokens are not
    a, b = ours.scores[0].log_softmax(-1), theirs.scores[0].log_softmax(-1)
    both = (a != -torch.inf) & (b != -torch.inf)
    assert (a - b)[both].abs().median() < 0.2


@every_method
def test_bitsandbytes_int8(method: str) -> None:
    """LLM.int8() rounds a token after its neighbours, so that passes are not shared."""
    model = bitsandbytes(load_in_8bit=True)
    assert type(model.model.language_model.layers[0].self_attn.q_proj).__name__ == "Linear8bitLt"
    apart = tokens(model, DEMO[method], fused=False)
    assert tokens(model, DEMO[method]) == apart != tokens(model, None)
    if method in CONTRASTIVE:
        with pytest.raises(UnsupportedModel, match=r"LLM\.int8"):
            tokens(model, DEMO[method], fused=True)


@every_method
@pytest.mark.parametrize(
    ("backend", "package", "settings"),
    [
        ("quanto", "optimum.quanto", {"nbits": 4}),
        ("quanto", "optimum.quanto", {"nbits": 2}),
        ("hqq", "hqq", {"nbits": 4, "axis_key": 1, "axis_value": 1}),
    ],
    ids=["quanto-4", "quanto-2", "hqq-4"],
)
def test_quantised_cache(backend: str, package: str, settings: dict[str, Any], method: str) -> None:
    """Off changes nothing, fusing changes nothing, and the method acts."""
    pytest.importorskip(package, reason=f"{package} is not installed")
    model, _ = load()
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend, **settings}}
    plain = caption(model, None, **options)
    off = caption(model, parse(DEMO[method]).off(), **options)
    assert all(torch.equal(a, b) for a, b in zip(plain.scores, off.scores, strict=True))
    apart = caption(model, DEMO[method], fused=False, **options)
    last = min(len(apart.scores), len(plain.scores))
    assert any((apart.scores[i] - plain.scores[i]).nan_to_num(0, 0, 0).abs().max() > 0.1 for i in range(last))
    if method in CONTRASTIVE:
        assert tokens(model, DEMO[method], fused=True, **options) == apart.sequences.tolist()


def adapted() -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(copy.deepcopy(FAMILY.model()), settings).eval()


@every_method
def test_a_peft_model_is_refused_and_its_base_model_has_the_adapters(method: str) -> None:
    model = adapted()
    with pytest.raises(UnsupportedModel, match=r"PeftModel.* pass model\.get_base_model\(\)"):
        write(model, method)
    inside = write(model.get_base_model(), method)
    assert inside != write(FAMILY.model(), method), "the adapters act"
    assert inside == write(model.merge_and_unload(), method)


def test_every_method_has_settings_here() -> None:
    assert sorted(DEMO) == sorted(methods())
