"""The official client against a server on a port: what people's apps do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from serving import (
    GUARD,
    ForwardGate,
    client_of,
    data_uri,
    handler_of,
    painted,
    question,
    request,
    running,
    until,
)
from strong import STRONG

from keepsight import mitigate
from keepsight.serve.limits import Limits
from keepsight.serve.prompts import ChatMessage, prepare_chat

SPECS = tuple(recipe.spec for recipe in STRONG.values())
URI = data_uri(painted(0))
WORDS = "a cat and a dog"
ASKED = question(URI, WORDS)
LENGTH = 8


@pytest.fixture(scope="module")
def address(loaded: Any) -> Iterator[str]:
    with running(handler_of(loaded, *SPECS, "vhr+m3id:decay=0.7,cutoff=0")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return client_of(address)


def plain(loaded: Any, *methods: Any, length: int = LENGTH, turns: Any = None) -> str:
    model, processor = loaded
    inputs = prepare_chat(processor, turns or [ChatMessage("user", (WORDS, painted(0)))])
    with mitigate(model, *methods):
        written = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return str(processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def create(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "toy", "messages": ASKED, "max_tokens": LENGTH} | settings
    )


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "toy"
    assert len(names) == len(SPECS) + 2
    assert client.models.retrieve(names[1]).id == names[1]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("toy:nope")


@pytest.mark.parametrize("name", STRONG)
def test_each_method_under_its_name_is_generate_with_it(
    loaded: Any, client: openai.OpenAI, name: str
) -> None:
    wanted = plain(loaded, STRONG[name])
    spec = STRONG[name].spec
    assert create(client, model=f"toy:{spec}").choices[0].message.content == wanted
    override = {"keepsight": {"methods": [spec]}}
    assert create(client, extra_body=override).choices[0].message.content == wanted
    assert wanted != plain(loaded)


def test_an_answer(loaded: Any, client: openai.OpenAI) -> None:
    found = create(client)
    choice = found.choices[0]
    assert choice.message.content == plain(loaded)
    assert (found.model, choice.message.role, choice.finish_reason) == ("toy", "assistant", "length")
    assert found.usage.completion_tokens == LENGTH
    assert found.usage.prompt_tokens > 64
    assert found.usage.total_tokens == found.usage.prompt_tokens + LENGTH
    assert not choice.model_extra, "who does not ask sees a plain answer"
    overridden = create(client, model=f"toy:{SPECS[0]}", extra_body={"keepsight": {"methods": []}})
    assert overridden.choices[0].message.content == choice.message.content


def test_a_stream(loaded: Any, client: openai.OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain(loaded)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == LENGTH
    assert len(chunks) > LENGTH / 2, "word by word"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_ends_with_done(address: str) -> None:
    body = {"model": "toy", "messages": ASKED, "max_tokens": 2, "stream": True}
    with httpx2.stream("POST", f"{address}/chat/completions", json=body, timeout=GUARD) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])


def test_several_turns_and_pictures(loaded: Any, client: openai.OpenAI) -> None:
    other = data_uri(painted(1))
    messages = [*ASKED, {"role": "assistant", "content": "a cup"}, *question(other, "a bowl")]
    turns = [
        ChatMessage("user", (WORDS, painted(0))),
        ChatMessage("assistant", ("a cup",)),
        ChatMessage("user", ("a bowl", painted(1))),
    ]
    assert create(client, messages=messages).choices[0].message.content == plain(loaded, turns=turns)


def test_pictures_in_a_message_of_their_own_are_no_turn(
    loaded: Any, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's chat sends them so, and many templates refuse two turns of the user in a row."""
    refusing = (
        "{% for turn in messages %}{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(loaded[1], "chat_template", refusing + loaded[1].chat_template)
    shown = {"type": "image_url", "image_url": {"url": URI}}
    messages = [{"role": "user", "content": [shown]}, {"role": "user", "content": WORDS}]
    wanted = plain(loaded, turns=[ChatMessage("user", (painted(0), WORDS))])
    assert create(client, messages=messages).choices[0].message.content == wanted
    with pytest.raises(openai.BadRequestError, match="roles must alternate"):
        create(client, messages=[*messages, {"role": "user", "content": WORDS}])


def test_text_alone(loaded: Any, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "a cat"}]
    wanted = plain(loaded, turns=[ChatMessage("user", ("a cat",))])
    assert create(client, messages=messages).choices[0].message.content == wanted
    with pytest.raises(openai.BadRequestError, match="holds no picture, and m3id needs one"):
        create(client, messages=messages, extra_body={"keepsight": {"methods": ["m3id"]}})


def test_several_choices_and_seeds(client: openai.OpenAI) -> None:
    settings = {"n": 3, "temperature": 1.5, "seed": 7}
    first, second = (
        [choice.message.content for choice in create(client, **settings).choices] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 3
    streamed = ["", "", ""]
    for chunk in create(client, stream=True, **settings):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == first
    assert create(client, **settings | {"n": 1}).choices[0].message.content == first[0]
    alone = create(client, top_p=0.9).choices[0].message.content
    assert alone != create(client, top_p=0.9).choices[0].message.content, "top_p alone asks for drawing"


def test_stop(loaded: Any, client: openai.OpenAI) -> None:
    whole = plain(loaded)
    word = whole.split()[3]
    cut = whole[: whole.index(word)].rstrip()
    found = create(client, stop=[word, "never"]).choices[0]
    assert (found.message.content, found.finish_reason) == (cut, "stop")
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in create(client, stop=word, stream=True)
    )
    assert streamed == cut


def test_a_stop_text_that_begins_and_ends_within_tokens(loaded: Any, client: openai.OpenAI) -> None:
    whole = plain(loaded)
    first, second = whole.split()[1:3]
    assert min(len(first), len(second)) > 2
    stop = f"{first[2:]} {second[:2]}"
    cut = whole[: whole.index(stop)]
    wish = {"stop": stop, "logprobs": True, "extra_body": {"keepsight": {"grounding": True}}}
    found = create(client, **wish).choices[0]
    assert found.message.content == cut
    tokens = found.model_extra["keepsight"]["grounding"]["tokens"]
    assert tokens[-1]["span"][1] == len(cut)
    streamed = [chunk.choices[0] for chunk in create(client, stream=True, **wish)]
    assert "".join(choice.delta.content or "" for choice in streamed) == cut
    told = [entry for choice in streamed if choice.logprobs for entry in choice.logprobs.content]
    assert told == found.logprobs.content


def test_logprobs(client: openai.OpenAI) -> None:
    found = create(client, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(entry.token for entry in found.logprobs.content) == found.message.content
    for entry in found.logprobs.content:
        assert [entry.token, entry.logprob] == [entry.top_logprobs[0].token, entry.top_logprobs[0].logprob]
        assert bytes(entry.bytes).decode() == entry.token
    streamed = [
        entry
        for chunk in create(client, logprobs=True, top_logprobs=2, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == found.logprobs.content


def test_grounding(client: openai.OpenAI) -> None:
    wish = {"keepsight": {"grounding": True, "threshold": -2.0}}
    choice = create(client, extra_body=wish).choices[0]
    told = choice.model_extra["keepsight"]["grounding"]
    assert "".join(token["text"] for token in told["tokens"]) == choice.message.content
    for token in told["tokens"]:
        assert token["difference"] == pytest.approx(token["with_image"] - token["without_image"])
        start, end = token["span"]
        assert choice.message.content[start:end] == token["text"]
    assert (told["threshold"], told["score"], told["aggregate"]) == (-2.0, "contrast", "mean")
    assert told["words"]
    for word in told["words"]:
        assert word["unsupported"] == (word["support"] < -2.0)
        assert choice.message.content[slice(*word["span"])] == word["word"]
    assert {word["unsupported"] for word in told["words"]} == {True, False}
    extras = [
        chunk.choices[0].model_extra["keepsight"]["grounding"]
        for chunk in create(client, extra_body=wish, stream=True)
        if chunk.choices[0].model_extra
    ]
    assert [token for extra in extras for token in extra.get("tokens", ())] == told["tokens"]
    assert extras[-1]["words"] == told["words"]


@pytest.mark.parametrize(
    ("settings", "error", "code"),
    [
        ({"model": "toy:nope"}, openai.NotFoundError, "model_not_found"),
        ({"extra_body": {"keepsight": {"methods": ["nope"]}}}, openai.BadRequestError, "unknown_method"),
        (
            {"extra_body": {"keepsight": {"methods": ["m3id:x=1"]}}},
            openai.BadRequestError,
            "unknown_parameter",
        ),
        (
            {"extra_body": {"keepsight": {"methods": ["m3id:decay=nan"]}}},
            openai.BadRequestError,
            "invalid_parameter",
        ),
        ({"extra_body": {"keepsight": {"methods": ["vhr:layers=99"]}}}, openai.BadRequestError, None),
        ({"temperature": 9}, openai.BadRequestError, None),
        ({"messages": question("data:image/png;base64,@@")}, openai.BadRequestError, "invalid_image"),
        ({"messages": question("http://127.0.0.1/a.png")}, openai.BadRequestError, "invalid_image"),
        ({"messages": question("file:///etc/passwd")}, openai.BadRequestError, "invalid_image"),
        ({"messages": question(URI, "cat " * 500)}, openai.BadRequestError, "context_length_exceeded"),
        ({"messages": question(URI, "<image>")}, openai.BadRequestError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: openai.OpenAI, settings: Any, error: type[Exception], code: str | None, stream: bool
) -> None:
    with pytest.raises(error) as raised:
        create(client, stream=stream, **settings)
    told = raised.value
    assert isinstance(told, openai.APIStatusError)
    assert told.type == "invalid_request_error"
    if code is not None:
        assert told.code == code
    assert create(client, max_tokens=1).choices, "the server lives on"


def test_a_history_of_ten_thousand_messages(address: str) -> None:
    body = {"model": "toy", "messages": [{"role": "user", "content": "cat"}] * 10_000}
    response = request("POST", f"{address}/chat/completions", json=body)
    assert response.status_code == 400
    assert "10,000 messages, and the limit is 1,000" in response.json()["error"]["message"]


def test_two_clients_with_two_methods(loaded: Any, client: openai.OpenAI) -> None:
    names = {f"toy:{STRONG[name].spec}": plain(loaded, STRONG[name]) for name in ("vhr", "vcd", "pai")}
    names["toy"] = plain(loaded)
    got: dict[str, set[str]] = {name: set() for name in names}

    def work(name: str) -> None:
        for _ in range(3):
            got[name].add(create(client, model=name).choices[0].message.content)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {name: {wanted} for name, wanted in names.items()}


def test_a_full_queue_and_clients_that_hang_up(loaded: Any, gate: ForwardGate, caplog: Any) -> None:
    handler = handler_of(loaded, limits=Limits(queue=1, batch=1))
    with running(handler) as address:
        client = client_of(address)
        gate.close_at = gate.passes + 5
        stream = create(client, stream=True, max_tokens=400)
        next(iter(stream))
        gate.wait_until_held()
        waiting = threading.Thread(target=lambda: create(client, max_tokens=1))
        waiting.start()
        until(lambda: handler.engine.waiting)
        with pytest.raises(openai.RateLimitError) as full:
            create(client)
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert full.value.code == "queue_full"
        health = request("GET", address.replace("/v1", "/health")).json()
        assert health == {"status": "ok", "running": 1, "waiting": 1}
        stream.close()
        until(
            lambda: not (handler.engine.running)
        )  # the model stands still: only the hanging up can have done it
        passes = gate.passes
        gate.open.set()
        waiting.join(GUARD)
        assert gate.passes <= passes + 3
        gate.open.clear()
        with pytest.raises(openai.APITimeoutError):
            create(client_of(address, timeout=0.3), max_tokens=400)
        until(lambda: not (handler.engine.running or handler.engine.waiting))
        gate.open.set()
        assert create(client, max_tokens=1).choices
    assert not caplog.records, "hanging up is no error"


def test_a_failure_in_a_stream_is_told(loaded: Any, gate: ForwardGate) -> None:
    with running(handler_of(loaded)) as address:
        client = client_of(address)
        gate.fail_at = gate.passes + 5
        stream = create(client, stream=True)
        with pytest.raises(openai.APIError, match="failed unexpectedly") as raised:
            list(stream)
        assert "secret" not in str(raised.value)
        gate.fail_at = gate.passes + 1
        with pytest.raises(openai.InternalServerError):
            create(client)
        assert create(client, max_tokens=1).choices


@pytest.mark.parametrize(("grace", "whole"), [(GUARD, True), (0.0, False)])
def test_the_end_of_a_server_ends_streams_cleanly(
    loaded: Any, gate: ForwardGate, grace: float, whole: bool
) -> None:
    told: list[Any] = []
    handler = handler_of(loaded)
    gate.close_at = gate.passes + 5

    def listen(stream: Any) -> None:
        try:
            told.extend(chunk.choices[0].finish_reason for chunk in stream)
        except openai.APIError as error:
            told.append(error)

    def go_on() -> None:
        """Let the model go on once the server is closing, or has given the answer up where there is no grace."""
        until(lambda: handler.engine._closing if whole else handler.engine._abort_error)
        gate.open.set()

    with running(handler, grace) as address:
        stream = create(client_of(address), stream=True, max_tokens=LENGTH * 10)
        thread = threading.Thread(target=listen, args=(stream,))
        thread.start()
        until(lambda: told)
        gate.wait_until_held()
        opener = threading.Thread(target=go_on)
        opener.start()
    opener.join(GUARD)
    thread.join(GUARD)
    if whole:
        assert told[-1] == "length"
    else:
        assert "shutting down" in str(told[-1])
