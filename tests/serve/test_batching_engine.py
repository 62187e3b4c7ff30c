"""The engine: what ``generate`` writes, whatever the company; places in a queue; a model that is left as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from serving import GUARD, ForwardGate, painted, until
from strong import STRONG

from keepsight import GroundingRecorder, mitigate
from keepsight.errors import InvalidParameter, KeepsightError, NoImageTokens
from keepsight.inference.collate import collate, shape_of
from keepsight.serve.batching_engine import BatchingEngine
from keepsight.serve.errors import (
    Busy,
    GenerationFailed,
    PromptTooLong,
    RequestRefused,
    ShuttingDown,
)
from keepsight.serve.prompts import ChatMessage, prepare_chat
from keepsight.serve.requests import GenerationEvent, GenerationRequest

LENGTH = 8
QUESTIONS = ("a cat", "a dog and a cat and a bowl", "oven", "mouse book")


@pytest.fixture
def engine(loaded: Any) -> Iterator[BatchingEngine]:
    with BatchingEngine(*loaded, gather=0.05) as engine:
        yield engine


def inputs_of(loaded: Any, number: int) -> Any:
    return prepare_chat(loaded[1], [ChatMessage("user", (painted(number), QUESTIONS[number % 4]))])


def asks(loaded: Any, *methods: Any, count: int = 4, **settings: Any) -> list[GenerationRequest]:
    settings = {"max_tokens": LENGTH} | settings
    return [GenerationRequest(inputs=inputs_of(loaded, i), methods=methods, **settings) for i in range(count)]


def texts(events: Iterator[GenerationEvent], count: int) -> list[str]:
    found = [""] * count
    for event in events:
        assert event.error is None, event.error
        found[event.index] += event.piece.text
    return found


def plain(loaded: Any, inputs: Any, *methods: Any, length: int = LENGTH) -> str:
    """What ``generate`` writes by itself."""
    model, processor = loaded
    with mitigate(model, *methods):
        written = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    rows = written[:, inputs["input_ids"].shape[1] :]
    return str(processor.batch_decode(rows, skip_special_tokens=True)[0]).strip()


@pytest.mark.parametrize("name", [None, *STRONG])
def test_answers_together_are_those_of_generate_alone(
    loaded: Any, engine: BatchingEngine, name: str | None, fingerprint: Callable[[Any], Any]
) -> None:
    methods = () if name is None else (STRONG[name],)
    before = fingerprint(loaded[0])
    batches = []
    handle = (
        loaded[0]
        .get_decoder()
        .register_forward_pre_hook(
            lambda _, args, kwargs: batches.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
    )
    questions = asks(loaded, *methods)
    together = texts(engine.generate(*questions), 4)
    handle.remove()
    assert max(batches) == 4, "one batch"
    assert fingerprint(loaded[0]) == before
    alone = [plain(loaded, question.inputs, *methods) for question in questions]
    assert together == alone
    if methods:
        assert together != [plain(loaded, question.inputs) for question in questions]


def test_methods_compose(loaded: Any, engine: BatchingEngine) -> None:
    methods = (STRONG["vhr"], STRONG["m3id"])
    [question] = asks(loaded, *methods, count=1)
    assert texts(engine.generate(question), 1) == [plain(loaded, question.inputs, *methods)]


def test_two_methods_at_the_same_time_keep_to_themselves(loaded: Any, engine: BatchingEngine) -> None:
    wanted = {
        name: [plain(loaded, ask.inputs, STRONG[name]) for ask in asks(loaded)] for name in ("vhr", "m3id")
    }
    got: dict[str, list[str]] = {}

    def client(name: str) -> None:
        got[name] = [text for ask in asks(loaded, STRONG[name]) for text in texts(engine.generate(ask), 1)]

    threads = [threading.Thread(target=client, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_drawn_answers_do_not_depend_on_their_company(loaded: Any, engine: BatchingEngine) -> None:
    settings = {"temperature": 1.3, "top_p": 0.9}
    questions = [
        GenerationRequest(inputs=inputs_of(loaded, i), seed=str(i), max_tokens=LENGTH, **settings)
        for i in range(4)
    ]
    greedy = asks(loaded, count=1)
    together = texts(engine.generate(*questions, *greedy), 5)
    assert together[:4] == [texts(engine.generate(question), 1)[0] for question in questions]
    assert together[4:] == [plain(loaded, greedy[0].inputs)]
    again = [GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=LENGTH, **settings) for _ in range(2)]
    assert len({*texts(engine.generate(*again), 2), together[0]}) == 3, "another seed, another answer"
    cold = GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=LENGTH, temperature=1e-30)
    assert texts(engine.generate(cold), 1) == [plain(loaded, cold.inputs)]


def test_lengths_and_stop_texts_are_each_ones_own(loaded: Any, engine: BatchingEngine) -> None:
    whole = plain(loaded, inputs_of(loaded, 0))
    words = whole.split()
    short = GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=2)
    stopped = GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=LENGTH, stop=(" " + words[4],))
    long = GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=LENGTH)
    ends = {event.index: event for event in engine.generate(short, stopped, long) if event.last}
    assert [ends[i].finish for i in range(3)] == ["length", "stop", "length"]
    found = texts(engine.generate(short, stopped, long), 3)
    assert found[2] == whole
    assert whole.startswith(found[0])
    assert ends[0].tokens == 2
    assert found[1] == whole[: whole.index(" " + words[4])].rstrip()


def test_logprobs_are_those_of_the_scores(loaded: Any, engine: BatchingEngine) -> None:
    model, processor = loaded
    inputs = inputs_of(loaded, 1)
    told = [
        token
        for event in engine.generate(GenerationRequest(inputs=inputs, max_tokens=4, top_logprobs=3))
        for token in event.piece.tokens
    ]
    out = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    for token, scores in zip(told, out.scores, strict=True):
        values, ids = scores[0].float().log_softmax(-1).topk(3)
        assert token.logprob == pytest.approx(float(values[0]), abs=1e-5)
        assert [value for _, value in token.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert token.top[1][0].strip() == processor.tokenizer.decode([ids[1]])


def test_grounding_is_the_recorders(loaded: Any, engine: BatchingEngine) -> None:
    model, processor = loaded
    inputs = inputs_of(loaded, 2)
    recorder = GroundingRecorder(model, inputs)
    wanted = recorder.read(
        model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, logits_processor=[recorder]),
        processor,
    )[0]
    company = [
        GenerationRequest(inputs=inputs_of(loaded, i), max_tokens=LENGTH, grounding=True) for i in range(4)
    ]
    events = [event for event in engine.generate(*company) if event.index == 2]
    found = events[-1].grounding
    assert found is not None
    assert found.text == wanted.text
    tokens = [token for event in events for token in event.piece.tokens]
    for token, judged, one in zip(tokens, found.tokens, wanted.tokens, strict=True):
        assert token.span[1] == judged.span[1]
        assert token.figures is not None
        assert token.figures[:2] == (judged.with_image, judged.without_image)
        assert judged.difference == pytest.approx(one.difference, abs=1e-4)
    assert [word.object for word in found.words()] == [word.object for word in wanted.words()]


def test_who_hangs_up_frees_the_model_within_a_token(loaded: Any, gate: ForwardGate) -> None:
    with BatchingEngine(*loaded) as engine:
        gate.close_at = gate.passes + 5
        events = engine.generate(GenerationRequest(inputs=inputs_of(loaded, 0), max_tokens=400))
        next(events)
        gate.wait_until_held()
        events.close()
        stood = gate.passes
        gate.open.set()
        [question] = asks(loaded, count=1, max_tokens=1)
        assert texts(engine.generate(question), 1) != [""]
        assert gate.passes <= stood + 3, (
            "at most one pass under way, one token more, and the next answer's prefill"
        )


def test_who_hangs_up_while_waiting_leaves_the_queue(loaded: Any, gate: ForwardGate) -> None:
    with BatchingEngine(*loaded, queue=1) as engine:
        gate.open.clear()
        heard: list[GenerationEvent] = []
        first = engine.submit(asks(loaded, count=1), heard.append)
        until(lambda: not engine.waiting)
        second = engine.submit(asks(loaded, count=1), heard.append)
        with pytest.raises(Busy) as refused:
            engine.submit(asks(loaded, count=1), heard.append)
        assert 1 <= refused.value.retry_after <= 60
        second.cancel()
        assert engine.waiting == 0
        third = engine.submit(asks(loaded, count=1), heard.append)
        for handle in (first, third):
            handle.cancel()
        gate.open.set()
    assert heard == [], "nobody who has left is told anything"


def test_who_waits_longest_comes_next(loaded: Any, gate: ForwardGate) -> None:
    order: list[str] = []
    with BatchingEngine(*loaded, batch=2) as engine:
        gate.open.clear()

        def ask(name: str, *methods: Any) -> None:
            def tell(event: GenerationEvent) -> None:
                if event.last:
                    order.append(name)

            engine.submit(asks(loaded, *methods, count=1, max_tokens=1), tell)

        ask("first")
        until(lambda: not engine.waiting)
        for name in ("m3id a", "plain b", "m3id c", "plain d", "m3id e"):
            ask(name, *([STRONG["m3id"]] if "m3id" in name else []))
        gate.open.set()
        until(lambda: len(order) == 6)
    assert order == ["first", "m3id a", "m3id c", "plain b", "plain d", "m3id e"]


@pytest.mark.parametrize("name", [None, "vhr", "pai", "vsv", "m3id"])
def test_a_failure_in_the_middle_is_told_and_leaves_no_trace(
    loaded: Any, gate: ForwardGate, name: str | None, fingerprint: Callable[[Any], Any], caplog: Any
) -> None:
    methods = () if name is None else (STRONG[name],)
    before = fingerprint(loaded[0])
    with BatchingEngine(*loaded) as engine:
        [question] = asks(loaded, *methods, count=1)
        gate.fail_at = 6
        events = list(engine.generate(question))
        assert len(events) > 1
        assert isinstance(events[-1].error, GenerationFailed)
        assert "secret" not in str(events[-1].error)
        assert "secret" in caplog.text
        assert fingerprint(loaded[0]) == before
        assert texts(engine.generate(question), 1) == [plain(loaded, question.inputs, *methods)]


def test_one_that_cannot_be_answered_does_not_take_others_along(loaded: Any, engine: BatchingEngine) -> None:
    good, bad = asks(loaded, STRONG["m3id"], count=2)
    bad = GenerationRequest(inputs=dict(bad.inputs), methods=bad.methods, max_tokens=LENGTH)
    ids = bad.inputs["input_ids"].clone()
    ids[ids == 3] = 5  # no place for the picture any more
    bad.inputs["input_ids"] = ids  # type: ignore[index]
    events = list(engine.generate(good, bad))
    assert "".join(event.piece.text for event in events if event.index == 0) == plain(
        loaded, good.inputs, *good.methods
    )
    assert isinstance([event for event in events if event.index == 1][-1].error, NoImageTokens)


def test_the_end_lets_answers_end(loaded: Any, gate: ForwardGate) -> None:
    engine = BatchingEngine(*loaded, batch=1)
    heard: dict[str, list[GenerationEvent]] = {"running": [], "waiting": []}
    gate.open.clear()
    engine.submit(asks(loaded, count=1), heard["running"].append)
    until(lambda: not engine.waiting)
    engine.submit(asks(loaded, count=1), heard["waiting"].append)
    closing = threading.Thread(target=engine.close, args=(GUARD,))
    closing.start()
    until(lambda: heard["waiting"])
    gate.open.set()
    closing.join()
    assert isinstance(heard["waiting"][0].error, ShuttingDown)
    assert heard["running"][-1].finish == "length"
    with pytest.raises(ShuttingDown):
        engine.submit(asks(loaded, count=1), heard["running"].append)


def test_the_end_tells_who_is_not_done(loaded: Any, gate: ForwardGate) -> None:
    engine = BatchingEngine(*loaded)
    heard: list[GenerationEvent] = []
    gate.close_at = gate.passes + 5
    engine.submit(asks(loaded, count=1, max_tokens=400), heard.append)
    gate.wait_until_held()
    closing = threading.Thread(target=engine.close, args=(0,))
    closing.start()
    until(lambda: engine._abort_error)
    gate.open.set()
    closing.join(GUARD)
    assert not closing.is_alive()
    assert isinstance(heard[-1].error, ShuttingDown)
    assert sum(event.last for event in heard) == 1


def test_a_batch_is_what_the_processor_makes(loaded: Any) -> None:
    _, processor = loaded
    prompts = [inputs_of(loaded, i) for i in range(4)]
    written = [f"USER: <image>\n{question} ASSISTANT:" for question in QUESTIONS]
    wanted = processor(
        text=written,
        images=[[painted(i)] for i in range(4)],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    found = collate(prompts, processor.tokenizer.pad_token_id)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_prompts_of_unlike_shapes_stand_apart(loaded: Any) -> None:
    _, processor = loaded
    text = prepare_chat(processor, [ChatMessage("user", ("a cat",))])
    shapes = [shape_of(inputs_of(loaded, 0)), shape_of(inputs_of(loaded, 1)), shape_of(text)]
    assert shapes[0] == shapes[1] != shapes[2]
    assert shape_of({"input_ids": torch.ones(1, 2), "odd": [1]}) is None


def test_a_conversation_with_several_pictures(loaded: Any, engine: BatchingEngine) -> None:
    _, processor = loaded
    turns = [
        ChatMessage("user", (painted(0), "a cat")),
        ChatMessage("assistant", ("a dog",)),
        ChatMessage("user", ("and", painted(1), "oven")),
    ]
    inputs = prepare_chat(processor, turns)
    assert int((inputs["input_ids"] == 3).sum()) == 2 * 64
    assert processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True).split()[-1] != "a dog"
    question = GenerationRequest(inputs=inputs, methods=(STRONG["vcd"],), max_tokens=LENGTH)
    other = GenerationRequest(inputs=inputs_of(loaded, 0), methods=(STRONG["vcd"],), max_tokens=LENGTH)
    assert texts(engine.generate(question, other), 2)[0] == plain(loaded, inputs, STRONG["vcd"])


@pytest.mark.parametrize(
    ("turns", "error", "says"),
    [
        (
            [ChatMessage("system", ("be short",)), ChatMessage("user", ("a cat",))],
            RequestRefused,
            "knows the roles user and",
        ),
        ([ChatMessage("user", ("what is <image> ?",))], RequestRefused, "holds '<image>'"),
        ([ChatMessage("user", ("cat " * 600,))], PromptTooLong, "at most 500"),
        ([ChatMessage("user", ("cat " * 6000,))], PromptTooLong, "24,000 characters"),
        (
            [ChatMessage("assistant", (painted(0), "a cat"))],
            RequestRefused,
            "has no place for a picture|does not take",
        ),
    ],
)
def test_conversations_that_a_model_cannot_take(
    loaded: Any, turns: Sequence[ChatMessage], error: type[KeepsightError], says: str
) -> None:
    with pytest.raises(error, match=says):
        prepare_chat(loaded[1], turns, max_tokens=500)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"max_tokens": 0},
        {"temperature": 1.0, "top_p": 0.0},
    ],
)
def test_settings_out_of_range(loaded: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        GenerationRequest(inputs=inputs_of(loaded, 0), **wrong)
