"""A twin has the weights of its model and nothing else of it."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL
from strong import STRONG
from torch import Tensor, nn
from transformers import StoppingCriteria

from keepsight import UnsupportedModel, attached, mitigate
from keepsight.engines.hf.weight_sharing import twin
from keepsight.grounding import teacher_force

FAMILY = FAMILIES["llava"]
PROMPT = [[1, 10, 11, 12, 13]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "suppress_tokens": SPECIAL,
    "do_sample": False,
}


def own() -> Any:
    """A model that nobody else has."""
    return copy.deepcopy(FAMILY.model())


def answer(model: Any, inputs: dict[str, Any], *methods: str, **options: Any) -> list[int]:
    with mitigate(model, *(STRONG[method] for method in methods)):
        out: Tensor = model.generate(**inputs, **{**OPTIONS, **options})
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    named = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: tensor for each in named for name, tensor in each}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_twin_is_another_tree_over_the_same_weights(name: str) -> None:
    model = FAMILIES[name].model()
    other = twin(model)
    mine, its = tensors(model), tensors(other)
    assert list(mine) == list(its)
    assert all(mine[key] is its[key] for key in mine)
    assert [one.data_ptr() for one in mine.values()] == [one.data_ptr() for one in its.values()]
    assert type(other) is type(model)
    assert not {id(one) for one in model.modules()} & {id(one) for one in other.modules()}
    assert [(key, type(one)) for key, one in model.named_modules()] == [
        (key, type(one)) for key, one in other.named_modules()
    ]
    for part in ("config", "generation_config"):
        assert getattr(other, part) is not getattr(model, part)
        assert getattr(other, part).to_dict() == getattr(model, part).to_dict()
    decoder = other.config.get_text_config(decoder=True)
    assert decoder is other.get_decoder().config, "the parts of the twin read the twin's configuration"
    assert not other.training


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma", "idefics3", "mllama"])
def test_a_twin_answers_as_its_model_and_knows_no_edit_of_it(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs(PROMPT)
    other = twin(model)
    plain, edited = answer(model, inputs), answer(model, inputs, "vhr")
    assert plain != edited
    assert answer(other, inputs) == plain
    assert answer(other, inputs, "vhr") == edited
    assert answer(other, inputs, "vcd") == answer(model, inputs, "vcd")
    for one, another in ((model, other), (other, model)):
        with mitigate(one, STRONG["vhr"]):
            assert answer(another, inputs) == plain
        with attached(one, inputs, STRONG["vhr"]):
            assert answer(another, inputs) == plain


class Together(StoppingCriteria):
    """Lets a token be written only once every thread has one to write."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.barrier.wait(30)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("llava", [[1, 20, 21]]), ("qwen2_vl", PROMPT), ("gemma3", PROMPT)],
    ids=["llava", "qwen2_vl", "gemma3"],
)
def test_threads_write_in_step_under_methods_of_their_own(name: str, prompt: list[list[int]]) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.inputs(prompt)
    models = [model, twin(model), twin(model)]
    settings = [("vhr", "pai"), ("vcd",), ()]
    alone = [answer(model, inputs, *methods) for methods in settings]
    assert len({tuple(ids) for ids in alone}) == 3
    before = [(hooks(one), one.config.to_dict(), set(vars(one))) for one in models]
    barrier = threading.Barrier(3)

    def write(one: Any, methods: tuple[str, ...]) -> list[int]:
        return answer(one, inputs, *methods, stopping_criteria=[Together(barrier)])

    with ThreadPoolExecutor(3) as threads:
        for turn in range(3):  # each model has each setting once
            order = settings[turn:] + settings[:turn]
            together = list(threads.map(write, models, order))
            assert together == alone[turn:] + alone[:turn]
    assert [(hooks(one), one.config.to_dict(), set(vars(one))) for one in models] == before
    assert [answer(one, inputs) for one in models] == [alone[2]] * 3


def test_two_threads_edit_at_once_where_one_model_would_refuse() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPT)
    other = twin(model)
    edited = answer(model, inputs, "vhr")
    with attached(model, inputs, STRONG["vhr"]), ThreadPoolExecutor(1) as thread:
        assert thread.submit(answer, other, inputs, "vhr").result() == edited


def test_greedy_answers_and_their_judge_leave_the_random_state_of_all_threads_alone() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPT)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for method in STRONG:
        answer(model, inputs, method)
    teacher_force(model, inputs, [[10, 11, 12]])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_dropped_twin_is_gone_and_a_kept_one_does_not_keep_its_model() -> None:
    model, inputs = copy.deepcopy(FAMILY.model()), FAMILY.inputs(PROMPT)
    plain = answer(model, inputs)
    other = twin(model)
    answer(other, inputs, "vhr", "vcd")
    parts = [weakref.ref(one) for one in other.modules()]
    del other
    gc.collect()
    assert not any(ref() for ref in parts)
    other = twin(model)
    parts = [weakref.ref(one) for one in model.modules()]
    del model
    gc.collect()
    assert not any(ref() for ref in parts)
    assert answer(other, inputs) == plain


def test_what_a_layer_holds_beside_its_weights_is_its_own_and_the_tensors_in_it_are_not() -> None:
    class State:
        def __init__(self) -> None:
            self.scales = [torch.ones(3)]

        def scaled(self) -> Tensor:
            return self.scales[0]

    model = own()
    place = model.get_decoder().layers[0].mlp
    place.state, place.last = State(), torch.zeros(2)
    place.ready = functools.partial(torch.add, torch.ones(2))
    place.scaled = State().scaled
    other = twin(model).get_decoder().layers[0].mlp
    assert other.state is not place.state
    assert other.state.scales is not place.state.scales
    assert other.state.scales[0] is place.state.scales[0]
    assert other.last is place.last
    assert other.ready.args[0] is place.ready.args[0]
    assert other.scaled.__self__ is not place.scaled.__self__
    assert other.scaled() is place.scaled()


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def accelerated(model: Any) -> Iterator[None]:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    layer = model.get_decoder().layers[1]
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    try:
        yield
    finally:
        remove_hook_from_module(layer)


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    handle = model.get_decoder().register_forward_hook(lambda *passed: None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eight_bit(model: Any) -> Iterator[None]:
    class Int8Params(nn.Parameter):
        pass

    place = model.get_decoder().layers[0].mlp.up_proj
    before = place.weight
    place.weight = Int8Params(before.data)
    try:
        yield
    finally:
        place.weight = before


class Grown:
    """State that makes a tensor of its own when it is copied."""

    def __deepcopy__(self, memo: Any) -> Grown:
        made = Grown()
        made.weights = torch.ones(2)  # type: ignore[attr-defined]
        return made


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    layer = model.get_decoder().layers[0]
    layer.compile()
    try:
        yield
    finally:
        layer._compiled_call_impl = None


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "accelerate": (accelerated, r"Accelerate moves what LlamaDecoderLayer \S*layers.1 works on"),
    "mitigate": (lambda model: mitigate(model, "vcd"), r"generate\(\) of LlavaFor\w+ is replaced"),
    "edits": (lambda model: attached(model, FAMILY.inputs(PROMPT), STRONG["pai"]), "is replaced"),
    "shared passes": (
        lambda model: attached(model, FAMILY.inputs(PROMPT), STRONG["vcd"], fused=True),
        r"(is replaced|has a hook)",
    ),
    "hook": (hooked, "LlamaModel model.language_model has a hook"),
    "int8": (eight_bit, r"state from the parameter \S*layers.0.mlp.up_proj.weight"),
    "compiled": (compiled, "is compiled"),
    "tensor parallel": (lambda model: _set(model, "_tp_size", 2), "spread over processes"),
    "zero": (lambda model: _set(model.lm_head.weight, "ds_id", 1), "the parameter lm_head.weight is sharded"),
    "lock": (
        lambda model: _set(model.lm_head, "guard", threading.Lock()),
        r"cannot be copied \(TypeError: cannot pickle '_thread.lock'",
    ),
    "own copy": (
        lambda model: _set(model.lm_head, "state", Grown()),
        "keeps tensors that cannot be shared",
    ),
}


def state(model: nn.Module) -> Any:
    return hooks(model), {name: set(vars(one)) for name, one in model.named_modules()}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_exact_is_refused_for_as_long_as_it_is_there(case: str) -> None:
    model = own()
    opened, told = REFUSED[case]
    with opened(model):
        before = state(model)
        with pytest.raises(UnsupportedModel, match=told) as refused:
            twin(model)
        assert state(model) == before
    assert "\n" not in str(refused.value)
    twin(model)


def test_sharded_models_are_refused(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    model = copy.deepcopy(FAMILY.model())
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        fully_shard(model, mesh=mesh)
        with pytest.raises(UnsupportedModel, match="no twin over the same weights"):
            twin(model)
    finally:
        distributed.destroy_process_group()


def test_what_is_no_model_of_transformers_has_no_twin() -> None:
    with pytest.raises(UnsupportedModel, match="not a transformers model"):
        twin(nn.Linear(2, 2))  # type: ignore[type-var]


def test_a_model_on_one_device_of_a_map_has_a_twin() -> None:
    from keepsight.inference.loading import load

    model, _ = load("demo", device_map="cpu")
    assert all(mine is its for mine, its in zip(model.parameters(), twin(model).parameters(), strict=True))


def test_a_twin_of_a_model_that_has_given_out_its_hidden_states() -> None:
    model, inputs = copy.deepcopy(FAMILY.model()), FAMILY.inputs(PROMPT)
    with torch.no_grad():
        first = model(**inputs, output_hidden_states=True)
        other = twin(model)
        again = other(**inputs, output_hidden_states=True)
    assert hooks(model) == hooks(other) > 0
    pairs = zip(first.hidden_states, again.hidden_states, strict=True)
    assert all(torch.equal(one, another) for one, another in pairs)
