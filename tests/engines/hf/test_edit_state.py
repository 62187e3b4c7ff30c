"""Whose passes are edited: those of the generation that was asked for, in its thread, and no others."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from families import FAMILIES, SPECIAL
from strong import STRONG
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keepsight import (
    M3ID,
    PAI,
    VCD,
    VHR,
    ConcurrentUse,
    KeepsightError,
    Method,
    ProcessorReused,
    attached,
    mitigate,
)
from keepsight.decoding.views import MainPrompt, NoImage
from keepsight.engines.hf.assisted_decoding import Drafts
from keepsight.engines.hf.branch import Branch
from keepsight.engines.hf.edit_state import LAYERS, STATES
from keepsight.errors import CopiedInBlock, UnsupportedModel
from keepsight.parts import Edit, HookContext, Part, Passes, Prelude
from keepsight.target import Target, cache_among, cache_name

FAMILY = FAMILIES["llava"]
PROMPTS = [[1, 10, 11, 12, 13], [1, 20, 21]]
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": SPECIAL, "do_sample": False,
}  # fmt: skip


def generate(*recipes: Method, prompts: list[list[int]] = PROMPTS, **options: Any) -> Tensor:
    model, inputs = FAMILY.model(), FAMILY.inputs(prompts)
    with mitigate(model, *recipes):
        out: Tensor = model.generate(**inputs, **{**OPTIONS, **options})
    return out[:, inputs["input_ids"].shape[1] :]


# Passes that somebody else runs within a generation


class Hears(Edit):
    """Counts the passes that it is called in, by the number of their rows."""

    def __init__(self) -> None:
        self.layers = frozenset({0})
        self.heard: list[int] = []

    def resid_post(self, hidden: Tensor, context: HookContext) -> Tensor:
        self.heard.append(context.rows)
        return hidden


@dataclass(frozen=True, kw_only=True)
class Listens(M3ID):
    heard: list[Hears] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Part]:
        self.heard.append(Hears())
        yield self.heard[-1]


GUIDANCE: dict[str, Any] = {
    "guidance_scale": 1.5,
    "negative_prompt_ids": torch.tensor([[1, 30, 31, 32], [1, 33, 34, 35]]),
    "negative_prompt_attention_mask": torch.ones(2, 4, dtype=torch.long),
}


def test_guidance_of_transformers_runs_unedited() -> None:
    listens = Listens(heard=[])
    generate(listens, **GUIDANCE)
    # One pass over the prompt and one for each further token: none of guidance's own, which has another prompt
    width = FAMILY.inputs(PROMPTS)["input_ids"].shape[1]
    assert listens.heard[0].heard == [width, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("method", ["sla", "pai", "vhr", "vsv", "var"])
def test_methods_inside_the_model_beside_guidance_equal_guidance_over_edited_logits(method: str) -> None:
    """The reference runs guidance's unconditional passes on a copy of the model in which nothing is in place."""
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

    recipe = STRONG[method] if method != "pai" else PAI(alpha=8.0, gamma=1.0, first_layer=0)
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    beside = copy.deepcopy(model)
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        GUIDANCE["guidance_scale"],
        beside,
        unconditional_ids=GUIDANCE["negative_prompt_ids"],
        unconditional_attention_mask=GUIDANCE["negative_prompt_attention_mask"],
    )
    with mitigate(model, recipe):
        expected = model.generate(**inputs, **OPTIONS, logits_processor=[guidance])
    found = generate(recipe, **GUIDANCE)
    assert torch.equal(found, expected[:, inputs["input_ids"].shape[1] :])
    assert not torch.equal(found, generate(**GUIDANCE))


# Generations within a generation


@dataclass(frozen=True, kw_only=True)
class Describes(M3ID):
    """Writes something before the generation, in several ways."""

    found: list[Any] = field(default_factory=list)
    how: str = "passes"

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Part]:
        def run(passes: Passes) -> None:
            if self.how == "passes":
                hears = Hears()
                self.found.append(passes.generate(MainPrompt(), hears, **OPTIONS))
                self.found.append(passes.generate(NoImage(), **OPTIONS))
                self.found.append(hears.heard)
            else:
                model: Any = target.model
                written = model.generate(**FAMILY.inputs(PROMPTS), **OPTIONS)
                self.found.append(written[:, target.prompt :])

        yield Prelude(run=run)


@pytest.mark.parametrize("beside", [(), (STRONG["vhr"],), (VCD(alpha=3.0),)], ids=str)
@pytest.mark.parametrize("how", ["passes", "the model's own generate"])
def test_a_prelude_may_generate_and_is_not_mitigated(how: str, beside: tuple[Method, ...]) -> None:
    plain = generate()
    describes = Describes(found=[], how=how)
    assert torch.equal(generate(*beside, describes), generate(*beside))
    assert torch.equal(describes.found[0], plain)
    if how == "passes":
        model, text = FAMILY.model(), Target(FAMILY.model(), FAMILY.inputs(PROMPTS)).without_image()
        alone = model.generate(**text, **OPTIONS)[:, text["input_ids"].shape[1] :]
        assert torch.equal(describes.found[1], alone)
        assert len(describes.found[2]) == OPTIONS["max_new_tokens"]


@pytest.mark.parametrize("recipe", [STRONG["vhr"], STRONG["sla"], VCD(alpha=3.0)], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_a_callback_that_generates_changes_nothing(recipe: Method, fused: bool) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    plain, inner = generate(), []

    def asks(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        inner.append(model.generate(**FAMILY.inputs(PROMPTS), **OPTIONS)[:, inputs["input_ids"].shape[1] :])
        return torch.zeros(len(ids), dtype=torch.bool)

    with mitigate(model, recipe, fused=fused):
        out = model.generate(**inputs, **OPTIONS, stopping_criteria=[asks])
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], generate(recipe))
    assert all(torch.equal(one, plain) for one in inner)


def test_a_prelude_s_own_generation_is_not_mitigated_under_attached_either() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    describes = Describes(found=[], how="the model's own generate")
    with attached(model, inputs, STRONG["vhr"], describes) as processors:
        out = model.generate(**inputs, **OPTIONS, logits_processor=processors)
    assert torch.equal(describes.found[0], generate())
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], generate(STRONG["vhr"]))


class Places(Edit):
    """Keeps where it was told that it stands."""

    def __init__(self) -> None:
        self.layers = frozenset({0})
        self.seen: list[tuple[int, int, int | None, list[int]]] = []

    def attn_pattern(self, pattern: Tensor, image: Tensor, context: HookContext) -> Tensor:
        self.seen.append((context.prompt, context.step, context.last_prompt_row, image.sum(-1).tolist()))
        return pattern


@dataclass(frozen=True, kw_only=True)
class Observes(M3ID):
    """Has one pass over each prompt observed before the generation."""

    places: list[Places] = field(default_factory=list)

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Part]:
        def run(passes: Passes) -> None:
            for view in (MainPrompt(), NoImage()):
                self.places.append(Places())
                passes.prefill(view, self.places[-1])

        yield Prelude(run=run)


def test_an_observer_of_a_prelude_s_pass_is_told_of_its_own_prompt() -> None:
    observes = Observes(places=[])
    generate(observes)
    width = FAMILY.inputs(PROMPTS)["input_ids"].shape[1]
    assert observes.places[0].seen == [(width, 0, width - 1, [4, 4])]
    assert observes.places[1].seen == [(width - 4, 0, width - 5, [0, 0])]


@pytest.mark.parametrize("outer", [STRONG["vsv"], STRONG["m3id"]], ids=str)
@pytest.mark.parametrize("attached_first", [True, False])
def test_attached_and_mitigate_nest_in_either_order(outer: Method, attached_first: bool) -> None:
    """With a state that is open already, the inner block's call is the generation itself and none within it."""
    model, inputs, inner = FAMILY.model(), FAMILY.inputs(PROMPTS), STRONG["vhr"]
    expected = generate(outer, inner) if outer is STRONG["vsv"] else generate_fused(outer, inner)
    first, second = (
        (attached(model, inputs, outer, fused=True), mitigate(model, inner))
        if attached_first
        else (mitigate(model, inner), attached(model, inputs, outer, fused=True))
    )
    with first as one, second as two:
        processors = one if attached_first else two
        out = model.generate(**inputs, **OPTIONS, logits_processor=processors)
    found = out[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(found, expected)
    assert not torch.equal(found, generate(inner))


def generate_fused(*recipes: Method) -> Tensor:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with mitigate(model, *recipes, fused=True):
        out: Tensor = model.generate(**inputs, **OPTIONS)
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("method", ["vhr", "vsv", "sla", "var"])
def test_edits_serve_one_generation_of_the_prompt_that_they_were_made_for(method: str) -> None:
    """What they have seen of the first prompt would act on the second."""
    model, inputs, recipe = FAMILY.model(), FAMILY.inputs(PROMPTS), STRONG[method]
    other = FAMILY.inputs([[1, 30, 31, 32, 33], [1, 40, 41]], seed=1)
    with attached(model, inputs, recipe) as processors:
        model.generate(**inputs, **OPTIONS, logits_processor=processors)
        with pytest.raises(ProcessorReused, match="served a generation already"):
            model.generate(**inputs, **OPTIONS, logits_processor=processors)
    with (
        attached(model, inputs, recipe) as processors,
        pytest.raises(ProcessorReused, match="opened for a prompt of shape"),
    ):
        model.generate(**other, **OPTIONS, logits_processor=processors)
    with mitigate(model, recipe):
        model.generate(**inputs, **OPTIONS)
        model.generate(**other, **OPTIONS)


def announces_once(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **kwargs: Any,
) -> Tensor:
    """A greedy search that lets transformers run the first pass, and calls the model itself for the others."""
    output = model._prefill(input_ids, generation_config, kwargs)
    mask, cache = kwargs["attention_mask"], cache_among(output)
    for step in range(OPTIONS["max_new_tokens"]):
        chosen = logits_processor(input_ids, output.logits[:, -1].float()).argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, chosen], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if step < OPTIONS["max_new_tokens"] - 1:
            output = model(
                input_ids=chosen,
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                use_cache=True,
                **{cache_name(model.forward): cache},
            )
    return input_ids


@pytest.mark.parametrize("method", STRONG)
def test_a_search_of_ones_own_is_edited_in_every_pass(method: str) -> None:
    """Its later passes are not announced, as those of transformers' guidance are not; but they have the main cache."""
    assert torch.equal(generate(custom_generate=announces_once), generate())
    assert torch.equal(generate(STRONG[method], custom_generate=announces_once), generate(STRONG[method]))


# Copies and leftovers


def test_a_copy_made_in_an_idle_block_is_a_plain_model() -> None:
    model, inputs, plain = FAMILY.model(), FAMILY.inputs(PROMPTS), generate()
    with mitigate(model, VCD(alpha=4.0, beta=0.0)):
        copied = copy.deepcopy(model)
        mitigated = model.generate(**inputs, **OPTIONS)
        found = copied.generate(**inputs, **OPTIONS)
    assert torch.equal(found[:, inputs["input_ids"].shape[1] :], plain)
    assert not torch.equal(found, mitigated)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    # It drives its own weights, and not the original's
    assert not torch.equal(copied.generate(**inputs, **OPTIONS), found)
    assert torch.equal(generate(), plain)


@pytest.mark.parametrize("recipe", [STRONG["vhr"], STRONG["sla"], STRONG["m3id"]], ids=str)
def test_a_copy_of_a_model_with_hooks_in_place_is_refused(recipe: Method) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    with attached(model, inputs, recipe), pytest.raises(CopiedInBlock, match="copy it before"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_our_attention_function_stands_in_for_theirs_only_while_a_block_needs_it() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    before = dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    other = FAMILIES["qwen2_5_vl"]
    with attached(model, inputs, VHR()):
        ours = ALL_ATTENTION_FUNCTIONS["sdpa"]
        assert ours is not before[0]["sdpa"]
        # Models ask for this name in code of their own
        assert model.config.get_text_config()._attn_implementation == "sdpa"
        with attached(other.model(), other.inputs(PROMPTS), VHR()):
            pass
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is ours
        model.generate(**inputs, **OPTIONS)
    assert (dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)) == before
    assert not LAYERS
    assert not STATES


def test_what_another_library_registers_meanwhile_stays() -> None:
    right, model, inputs = ALL_ATTENTION_FUNCTIONS["sdpa"], FAMILY.model(), FAMILY.inputs(PROMPTS)

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return right(*args, **kwargs)

    try:
        with attached(model, inputs, VHR()):
            AttentionInterface.register("sdpa", theirs)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
        with attached(model, inputs, VHR()):
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not theirs
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
    finally:
        AttentionInterface.register("sdpa", right)


@pytest.mark.parametrize("recipe", [VHR(layers=(0, 1)), STRONG["m3id"]], ids=str)
def test_a_function_that_goes_before_ours_is_refused_by_name(recipe: Method) -> None:
    right = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **kwargs: right(*args, **kwargs)
    try:
        with (
            pytest.raises(UnsupportedModel, match="another library has put its own function"),
            attached(FAMILY.model(), FAMILY.inputs(PROMPTS), recipe, fused=True),
        ):
            pass
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is right


# Threads


def overlapping(first: Any, second: Any) -> None:
    """Opens two blocks in two threads, the second within the first, and closes the first within the second."""
    steps = [threading.Event() for _ in range(3)]
    errors: list[BaseException] = []

    def one() -> None:
        with first:
            steps[0].set()
            assert steps[1].wait(60)
        steps[2].set()

    def two() -> None:
        assert steps[0].wait(60)
        with second:
            steps[1].set()
            assert steps[2].wait(60)

    def run(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_blocks_of_two_threads_that_do_not_nest_leave_nothing_behind() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    before = set(vars(model))
    overlapping(attached(model, inputs, "vcd", fused=False), attached(model, inputs, "m3id", fused=False))
    assert set(vars(model)) == before
    overlapping(mitigate(model, "vcd"), attached(model, inputs, STRONG["vhr"]))
    assert set(vars(model)) == before


def test_a_thread_that_drafts_does_not_keep_another_from_contrasting() -> None:
    drafts = Drafts()
    drafts.change(True)
    assert drafts.under_way
    assert in_thread(lambda: drafts.under_way) is False
    drafts.change(False)
    assert not drafts.under_way


@dataclass(frozen=True, kw_only=True)
class Dawdles(M3ID):
    """Edits, and lets another thread work while its prelude runs."""

    meanwhile: Any = None

    def __post_init__(self) -> None:
        pass

    def parts(self, target: Target) -> Iterator[Part]:
        yield from STRONG["vhr"].parts(target)
        yield Prelude(run=lambda passes: self.meanwhile())


@pytest.mark.parametrize("own_block", [True, False])
def test_a_generation_that_is_being_prepared_is_not_taken_over_by_another_thread(own_block: bool) -> None:
    model, inputs, expected = FAMILY.model(), FAMILY.inputs(PROMPTS), generate(STRONG["vhr"])
    opened, prepared = threading.Event(), threading.Event()
    found: list[Any] = []

    def other() -> None:
        with mitigate(model, STRONG["vsv"]) if own_block else nullcontext():
            opened.set()
            assert prepared.wait(60)
            try:
                found.append(model.generate(**inputs, **OPTIONS))
            except KeepsightError as error:
                found.append(error)

    thread = threading.Thread(target=other)

    def meanwhile() -> None:
        if not prepared.is_set():
            prepared.set()
            thread.join()

    with mitigate(model, Dawdles(meanwhile=meanwhile)):
        thread.start()
        assert opened.wait(60)
        out = model.generate(**inputs, **OPTIONS)
    assert len(found) == 1
    assert isinstance(found[0], ConcurrentUse)
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)


def test_an_amateur_of_another_thread_leaves_the_edits_of_this_one_in_place() -> None:
    """The other thread has no edits. It stands within its amateur's first pass while this thread generates on."""
    model, inputs, expected = FAMILY.model(), FAMILY.inputs(PROMPTS), generate(STRONG["vhr"])
    branch = Branch(model, Target(model, inputs).without_image())
    inside, done = threading.Event(), threading.Event()
    this = threading.get_ident()

    def stops(module: Any, args: Any) -> None:
        if threading.get_ident() != this:
            inside.set()
            assert done.wait(60)

    # Not on the decoder, whose own hooks come and go with the block
    handle = Target(model, inputs).layers[1].mlp.register_forward_pre_hook(stops)
    asks = threading.Thread(target=lambda: branch(inputs["input_ids"][:, :0]))

    def begins(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if not inside.is_set():
            asks.start()
            assert inside.wait(60)
        return torch.zeros(len(ids), dtype=torch.bool)

    try:
        out = generate(STRONG["vhr"], stopping_criteria=[begins])
    finally:
        done.set()
        asks.join()
        handle.remove()
    assert torch.equal(out, expected)


def in_thread(work: Any) -> Any:
    """What ``work`` returns or raises in a thread of its own."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except KeepsightError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("fused", [False, "auto"])
def test_each_thread_has_its_own_blocks(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both blocks are open at once, whatever the threads do: they wait for each other. Only one of them can share passes."""
    monkeypatch.setattr("keepsight.engines.hf.fused_pass.SMALL", 0)
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    first, second = VCD(alpha=4.0, beta=0.0, noise_step=999), VCD(alpha=1.0, beta=0.0, noise_step=200)
    expected = [generate(first), generate(second)]
    both = threading.Barrier(2)
    found: dict[int, Tensor] = {}

    def work(index: int, recipe: Method) -> None:
        with mitigate(model, recipe, fused=fused):
            both.wait(60)
            found[index] = model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]
            both.wait(60)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert "generate" not in vars(model)


@pytest.mark.parametrize("recipe", [VCD(alpha=4.0, beta=0.0, noise_step=999), STRONG["vhr"]], ids=str)
def test_a_thread_without_a_block_uses_the_one_that_is_open(recipe: Method) -> None:
    """As code does that streams: the block stands in one thread, and another calls ``generate``."""
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    expected = generate(recipe)
    with mitigate(model, recipe):
        out = in_thread(lambda: model.generate(**inputs, **OPTIONS))
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)
    with attached(model, inputs, recipe) as processors:
        out = in_thread(lambda: model.generate(**inputs, **OPTIONS, logits_processor=processors))
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)


def test_a_thread_that_cannot_know_whose_block_is_meant_is_told_so() -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    opened, done = threading.Event(), threading.Event()

    def hold() -> None:
        with mitigate(model, "m3id"):
            opened.set()
            assert done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert opened.wait(60)
        with mitigate(model, "vcd"):
            error = in_thread(lambda: model.generate(**inputs, **OPTIONS))
    finally:
        done.set()
        holder.join()
    assert isinstance(error, ConcurrentUse)
    assert "several threads" in str(error)


def test_another_thread_s_plain_generation_is_not_edited() -> None:
    """A second generation under one edited block is refused; a pass that is none is the plain model's."""
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    plain = model(**inputs).logits
    results: list[Any] = []

    def asks(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if not results:
            results.append(in_thread(lambda: model(**FAMILY.inputs(PROMPTS)).logits))
            results.append(in_thread(lambda: model.generate(**FAMILY.inputs(PROMPTS), **OPTIONS)))
        return torch.zeros(len(ids), dtype=torch.bool)

    expected = generate(STRONG["vhr"])
    with attached(model, inputs, STRONG["vhr"]) as processors:
        out = model.generate(**inputs, **OPTIONS, logits_processor=processors, stopping_criteria=[asks])
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected)
    torch.testing.assert_close(results[0], plain)
    assert isinstance(results[1], ConcurrentUse)


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_that_opens_while_another_thread_generates_mixes_with_nothing(fused: bool) -> None:
    """It opens in the middle of a generation, generates there, and ends after the other block has ended."""
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS)
    width = inputs["input_ids"].shape[1]
    first, second = VCD(alpha=4.0, beta=0.0, noise_step=999), M3ID(decay=0.7, cutoff=0.0)
    expected, other = generate(first), generate(second)
    found: list[Any] = []
    opened, ended = threading.Event(), threading.Event()

    def work() -> None:
        with mitigate(model, second, fused=False):
            found.append(model.generate(**FAMILY.inputs(PROMPTS), **OPTIONS)[:, width:])
            opened.set()
            assert ended.wait(60)
            found.append(model.generate(**FAMILY.inputs(PROMPTS), **OPTIONS)[:, width:])

    thread = threading.Thread(target=work)

    def asks(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        if not thread.ident:
            thread.start()
            assert opened.wait(60)
        return torch.zeros(len(ids), dtype=torch.bool)

    with mitigate(model, first, fused=fused):
        out = model.generate(**inputs, **OPTIONS, stopping_criteria=[asks])
    ended.set()
    thread.join()
    assert torch.equal(out[:, width:], expected)
    assert all(torch.equal(one, other) for one in found)
    assert len(found) == 2
    assert not {"generate", "_keepsight_in_place", "_get_candidate_generator"} & vars(model).keys()
