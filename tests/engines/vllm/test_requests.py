"""Requests that are refused, or that fail alone: the engine goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from inside_vllm import PROMPT, SPECS, Engine, ask, pictures, wanted

from keepsight.demo.model import load
from keepsight.demo.world import scenes
from keepsight.source.source import Source

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def engine(start: Callable[..., Any]) -> Engine:
    tight = {"block_size": 32, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 13}
    return Engine(start([SPECS["two amateurs"]], max_model_len=384, **tight))


def fails(engine: Engine, request: Any, params: Any) -> None:
    """The request ends with an error and without a token, one beside it is answered, and nothing is left."""
    asked = [request, ask(pictures()[1])]
    first, second = engine.llm.generate(asked, [params, engine.params(SPECS["m3id"])], use_tqdm=False)
    assert first.outputs[0].finish_reason == "error"
    assert list(first.outputs[0].token_ids) == []
    assert list(second.outputs[0].token_ids) == wanted(SPECS["m3id"])[1]
    engine.check_nothing_left()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty cannot be used"),
        ({"presence_penalty": 0.5}, "presence_penalty cannot be used"),
        ({"frequency_penalty": -0.5}, "frequency_penalty cannot be used"),
        ({"prompt_logprobs": 1}, "prompt_logprobs cannot be used"),
        ({"extra_args": {"keepsight": "m3di"}}, "did you mean 'm3id'"),
        ({"extra_args": {"keepsight": "vhr"}}, "vhr cannot be used inside vLLM"),
        ({"extra_args": {"keepsight": "m3id:bogus=1"}}, "no parameter 'bogus'"),
        ({"extra_args": {"keepsight": "os.path:join"}}, "not a registered method"),
        ({"extra_args": {"keepsight_row": ["0", 1, "m3id"]}}, "may not set 'keepsight_row'"),
        ({"extra_args": {"keepsight": "m3id", "kv_transfer_params": {}}}, "transfers between engines"),
    ],
)
def test_wrong_requests_are_refused_before_they_reach_the_engine(
    engine: Engine, options: dict[str, Any], words: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    params = engine.params(None, **{"extra_args": {"keepsight": "m3id"}, **options})
    with pytest.raises(VLLMValidationError, match=words):
        # A picture that vLLM's front end has seen, and its engine has not, would be missing in the next request
        engine.llm.generate("USER: Hello. ASSISTANT:", params, use_tqdm=False)
    assert engine.answer(engine.params(SPECS["m3id"]), pictures()[:1]) == wanted(SPECS["m3id"])[:1]


def test_penalties_without_a_method_are_vllms_own(engine: Engine) -> None:
    answers = engine.answer(engine.params(None, repetition_penalty=3.0), pictures()[:4])
    assert answers != wanted(None)[:4]


def test_a_prompt_without_a_picture_fails_alone(engine: Engine) -> None:
    fails(engine, "USER: Hello. ASSISTANT:", engine.params("m3id"))


def test_a_prompt_that_can_never_fit_fails_alone(engine: Engine) -> None:
    long = PROMPT.replace("Describe", "Describe " * 40)
    params = engine.params("vcd", max_tokens=4)
    fails(engine, ask(pictures()[0], long), params)


def test_a_request_that_outgrows_the_cache_fails_alone_and_the_engine_goes_on(engine: Engine) -> None:
    """Three prompts with room for a hundred tokens more: the last of them do not fit into 12 blocks of 32."""
    params = engine.params(SPECS["two amateurs"], max_tokens=200, ignore_eos=True)
    (found,) = engine.llm.generate([ask(pictures()[0])], params, use_tqdm=False)
    assert found.outputs[0].finish_reason == "error"
    assert engine.scheduler.counts.failed == 1
    engine.scheduler.counts.failed = engine.scheduler.counts.repaired = 0
    engine.check_nothing_left()
    assert engine.answer(engine.params(SPECS["vcd"]), pictures()[:4]) == wanted(SPECS["vcd"])[:4]


def test_rows_that_draw_different_tokens_fail(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the combined scores the rows of a set draw what they like: nobody may see that."""
    from keepsight.engines.vllm.processor import Contrast

    right = wanted(SPECS["two amateurs"])[:8]
    with monkeypatch.context() as patch:
        patch.setattr(Contrast, "apply", lambda self, logits: logits)
        asked = [ask(image) for image in pictures()[:8]]
        found = engine.llm.generate(asked, engine.params(SPECS["two amateurs"]), use_tqdm=False)
    plain = wanted(None)[:8]
    assert any(one.outputs[0].finish_reason == "error" for one in found)
    for one, ours in zip(found, plain, strict=True):
        tokens = list(one.outputs[0].token_ids)
        assert tokens == ours[: len(tokens)]
    engine.scheduler.counts.failed = engine.scheduler.counts.repaired = 0
    engine.check_nothing_left()
    assert engine.answer(engine.params(SPECS["two amateurs"]), pictures()[:8]) == right


def test_methods_that_are_off_change_nothing(engine: Engine) -> None:
    params = engine.params("m3id:decay=0.0,cutoff=0.0")
    assert engine.answer(params, pictures()[:8]) == wanted(None)[:8]
    assert not engine.scheduler._sets


def test_the_prompt_without_its_picture_may_be_the_templates(engine: Engine) -> None:
    """On transformers a ``Source`` renders the chat template without the picture; here the caller passes those ids."""
    from keepsight import attached
    from keepsight.vllm import extra_args

    model, processor = load()
    image = scenes("test-shifted", 1)[0].image().convert("RGB")
    source = Source.of(processor, [image], "Describe this image.")
    inputs, spec = source.inputs(), "m3id:decay=0.4,cutoff=0.0"
    answers = {}
    for name, given in (("template", source), ("dropped", None)):
        with attached(model, inputs, spec, source=given) as processors:
            out = model.generate(**inputs, max_new_tokens=24, do_sample=False, logits_processor=processors)
        answers[name] = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert answers["template"] != answers["dropped"]
    written = source.without_images().inputs()["input_ids"][0].tolist()
    text = processor.apply_chat_template(source.prompts[0], add_generation_prompt=True, tokenize=False)
    for name, ids in (("template", written), ("dropped", None)):
        params = engine.params(None, max_tokens=24, extra_args=extra_args(spec, text_only=ids))
        found = engine.llm.generate([ask(image, text)], params, use_tqdm=False)
        assert list(found[0].outputs[0].token_ids) == answers[name]
