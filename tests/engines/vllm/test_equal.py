"""What vLLM generates with a method is, token for token, what the engine for transformers generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inside_vllm import PROMPT, SPECS, TOKENS, Engine, ask, cut, pictures, wanted

pytestmark = pytest.mark.vllm
OWN = SPECS["two amateurs"]
COUNT = 128


@pytest.fixture(
    scope="module",
    params=[{}, {"num_gpu_blocks_override": 27, "block_size": 32, "max_num_batched_tokens": 512}],
    ids=["a default cache", "a tight cache"],
)
def engine(request: Any, start: Callable[..., Any]) -> Iterator[Engine]:
    made = Engine(start([OWN], **request.param))
    made.tight = bool(request.param)  # type: ignore[attr-defined]
    yield made
    made.check_nothing_left()
    # The tight cache must have been too tight, or it would show nothing
    assert (made.scheduler.counts.preempted > 0) == made.tight  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SPECS)
def test_greedy(engine: Engine, name: str) -> None:
    spec = SPECS[name]
    assert engine.answer(engine.params(spec), pictures()) == wanted(spec)
    changed = sum(a != b for a, b in zip(wanted(spec), wanted(None), strict=True))
    assert name == "greedy" or changed > COUNT // 4
    assert not engine.scheduler.requests


def test_all_methods_and_none_in_one_batch(engine: Engine) -> None:
    specs = [list(SPECS.values())[i % len(SPECS)] for i in range(COUNT)]
    answers = engine.answer([engine.params(spec) for spec in specs], pictures())
    assert answers == [wanted(spec)[i] for i, spec in enumerate(specs)]


def test_sampling_with_seeds_in_two_orders(engine: Engine) -> None:
    options = [
        engine.params(list(SPECS.values())[1 + i % (len(SPECS) - 1)], temperature=1.0, top_p=0.95, seed=i)
        for i in range(COUNT)
    ]
    forth = engine.answer(options, pictures())
    assert engine.answer(options[::-1], pictures()[::-1])[::-1] == forth
    greedy = [wanted(list(SPECS.values())[1 + i % (len(SPECS) - 1)])[i] for i in range(COUNT)]
    assert sum(a == b for a, b in zip(forth, greedy, strict=True)) < COUNT // 4


def test_sampling_without_seeds(engine: Engine) -> None:
    """Rows of a set draw the same tokens; if they did not, the request would fail."""
    answers = engine.answer(engine.params(SPECS["two amateurs"], temperature=1.0), pictures()[:24])
    assert len({tuple(one) for one in answers}) > 12


def test_several_answers_to_one_prompt(engine: Engine) -> None:
    params = engine.params(SPECS["m3id"], n=3, temperature=1.0, seed=5)
    found = engine.llm.generate([ask(image) for image in pictures()[:4]], params, use_tqdm=False)
    answers = [[tuple(one.token_ids) for one in each.outputs] for each in found]
    assert [len(each) for each in answers] == [3] * 4
    assert all(len(set(each)) > 1 for each in answers)


def test_stop_strings(engine: Engine) -> None:
    params = engine.params(SPECS["m3id"], stop=["There", "."])
    found = engine.llm.generate([ask(image) for image in pictures()[:16]], params, use_tqdm=False)
    assert {one.outputs[0].finish_reason for one in found} == {"stop"}
    assert not any("There" in one.outputs[0].text or "." in one.outputs[0].text for one in found)
    assert not engine.scheduler.requests


def test_limits_of_length(engine: Engine) -> None:
    for most in (1, 2, 7):
        answers = engine.answer(engine.params(SPECS["joined"], max_tokens=most), pictures()[:8])
        assert answers == [one[:most] for one in wanted(SPECS["joined"])[:8]]


def test_aborts_leave_nothing(engine: Engine) -> None:
    inner = engine.llm.llm_engine
    for i in range(6):
        inner.add_request(f"x{i}", ask(pictures()[i]), engine.params(SPECS["two amateurs"]))
    for _ in range(5):
        inner.step()
    inner.abort_request(["x0", "x3"])
    done = {}
    while inner.has_unfinished_requests():
        done |= {one.request_id: list(one.outputs[0].token_ids) for one in inner.step() if one.finished}
    assert done == {f"x{i}": wanted(SPECS["two amateurs"])[i] for i in (1, 2, 4, 5)}
    assert not engine.scheduler.requests
    assert not engine.scheduler._sets


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {5: 3.0, 40: -5.0}},
        {"min_tokens": TOKENS - 8},
        {"ignore_eos": True},
        {"allowed_token_ids": list(range(2, 300))},
        {"logprobs": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_settings_act_on_the_expert_before_the_contrast(
    engine: Engine, options: dict[str, Any]
) -> None:
    """As on transformers, where a caller's processors come first and the amateur's logits are raw."""
    answers = engine.answer(engine.params(SPECS["vcd"], **options), pictures()[:16])
    assert answers == on_transformers(SPECS["vcd"], options)


def on_transformers(spec: str | None, options: dict[str, Any]) -> list[list[int]]:
    """The same with processors of transformers."""
    from transformers import LogitsProcessor, LogitsProcessorList

    from keepsight import attached
    from keepsight.demo.model import EOS, load

    class Given(LogitsProcessor):
        def __call__(self, ids: Any, scores: Any) -> Any:
            scores = scores.clone()
            for token, bias in options.get("logit_bias", {}).items():
                scores[:, token] += bias
            if "allowed_token_ids" in options:
                kept = scores[:, options["allowed_token_ids"]].clone()
                scores.fill_(float("-inf"))
                scores[:, options["allowed_token_ids"]] = kept
            if ids.shape[1] - start < options.get("min_tokens", 0):
                scores[:, EOS] = float("-inf")
            return scores

    model, processor = load()
    images = pictures()[:16]
    inputs = processor(images=images, text=[PROMPT] * len(images), return_tensors="pt", padding=True)
    start = inputs["input_ids"].shape[1]
    ending = {"eos_token_id": None} if "ignore_eos" in options else {}
    with attached(model, inputs, spec or "") as processors:
        given = LogitsProcessorList([Given(), *processors])
        out = model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, logits_processor=given, **ending
        )
    return [row if ending else cut(row) for row in out[:, start:].tolist()]
