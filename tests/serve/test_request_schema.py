"""Requests and model names, without HTTP: what is taken, what is refused, and by which name."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from keepsight import M3ID, VAR, VHR
from keepsight.calibration.file import BadCalibration
from keepsight.errors import ConflictingMethods, InvalidParameter, KeepsightError, OperatorOnly, UnknownMethod
from keepsight.registry import parse_all
from keepsight.serve.errors import RequestRefused, UnknownModelName
from keepsight.serve.limits import Limits
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.request_schema import (
    ChatRequest,
    has_more_values,
    image_urls,
    parse_chat_request,
    read_messages,
)
from keepsight.serve.responses import error_parts

LIMITS = Limits()
HELLO = [{"role": "user", "content": "hello"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "demo", "messages": HELLO} | fields).encode()


def test_unknown_fields_are_ignored() -> None:
    found = parse_chat_request(
        body(user="me", store=True, top_k=3, parallel_tool_calls=False, tools=[]), LIMITS
    )
    assert (found.model, found.messages[0].content) == ("demo", "hello")


def test_settings_that_say_nothing_are_taken() -> None:
    parse_chat_request(
        body(
            frequency_penalty=0,
            presence_penalty=0.0,
            logit_bias={},
            response_format={"type": "text"},
            modalities=["text"],
            keepsight=None,
            stop=None,
            n=None,
            stream=None,
        ),
        LIMITS,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": float("nan")}, None),
        ({"temperature": float("inf")}, None),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"stop": "\ud800"}, "stop"),
        ({"messages": [{"role": "user", "content": "a\udfff"}]}, "messages"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": "a" * 1001}, "stop"),
        ({"stop": [1]}, "stop.list[str].0"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"1": -100}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": HELLO * 10_000}, "messages"),
        ({"model": None}, "model"),
        ({"model": "m" * 1001}, "model"),
        ({"keepsight": {"methods": ["m" * 1001]}}, "keepsight.methods.0"),
        ({"keepsight": {"methods": ["vhr"] * 9}}, "keepsight.methods"),
        ({"keepsight": {"x" * 10_000: 1}}, None),
        ({"keepsight": {"metods": []}}, "keepsight.metods"),
        ({"keepsight": {"grounding": "yes"}}, "keepsight.grounding"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_chat_request(body(**fields), LIMITS)
    if param is not None and refused.value.param != param:
        assert str(refused.value.param).startswith(param.partition(".")[0])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


def test_an_option_may_be_null_and_emoji_may_be_escaped() -> None:
    found = parse_chat_request(body(keepsight={"grounding": None, "methods": None}, stop="🐕"), LIMITS)
    assert (found.options.grounding, found.stops) == (None, ("🐕",))


def test_more_choices_than_may_wait_never_have_their_turn() -> None:
    assert parse_chat_request(body(n=2), Limits(queue=2)).n == 2
    with pytest.raises(RequestRefused, match="3 is more than the limit of 2"):
        parse_chat_request(body(n=3), Limits(queue=2))


@pytest.mark.parametrize("few", [100, 3000])
@pytest.mark.parametrize(
    "fields",
    [
        lambda many: {"stop": [1] * many},
        lambda many: {"messages": [{"role": "user", "content": [1] * many}]},
        lambda many: {"keepsight": {f"x{at}": 1 for at in range(many)}},
        lambda many: {"keepsight": {"methods": [1] * many}},
        lambda many: {"logit_bias": {f"x{at}": "y" for at in range(many)}},
        lambda many: {"modalities": [1] * many},
        lambda many: {"messages": [1] * min(many, 999)},
    ],
)
def test_wrong_values_are_not_each_told_apart(fields: Any, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pydantic makes an error of every wrong item, and a dict of every error: a body of 2 MiB took gigabytes."""
    counts = []

    real = ChatRequest.model_validate

    def counted(found: Any) -> Any:
        try:
            return real(found)
        except ValidationError as error:
            counts.append(error.error_count())
            raise

    monkeypatch.setattr(ChatRequest, "model_validate", counted)
    with pytest.raises(RequestRefused):
        parse_chat_request(body(**fields(few)), LIMITS)
    assert sum(counts) < 5


def test_values_are_counted_before_they_are_made() -> None:
    most = 10_000 + 40 * LIMITS.messages
    with pytest.raises(RequestRefused, match=f"more than {most:,} values"):
        parse_chat_request(body(unknown=[{}] * most), LIMITS)
    assert parse_chat_request(body(unknown="," * most), LIMITS)
    with pytest.raises(RequestRefused, match="not JSON"):
        parse_chat_request(body().decode().encode("utf-16"), LIMITS)


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.text('",[{\\a', max_size=6), lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_values_in_strings_are_none(found: Any) -> None:
    def openers(value: Any) -> int:
        return 0 if isinstance(value, str) else 1 + max(len(value) - 1, 0) + sum(map(openers, value))

    text = json.dumps(found)
    for most in range(openers(found) + 2):
        assert has_more_values(text, most) == (openers(found) > most)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": 1e999}'])
def test_bodies_that_are_no_request(content: bytes) -> None:
    with pytest.raises(RequestRefused):
        parse_chat_request(content, LIMITS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["model", "messages", "temperature", "n", "stop", "keepsight", "stream", "logprobs", "seed"]
        ),
        json_values,
    )
)
def test_whatever_comes_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(KeepsightError):
        found = parse_chat_request(json.dumps(fields).encode(), LIMITS)
        read_messages(found, lambda url: pytest.fail("no picture was sent"))


def turns(*messages: dict[str, Any], limits: Limits = LIMITS) -> Any:
    return read_messages(parse_chat_request(body(messages=list(messages)), limits), lambda url: url)


def test_turns_keep_their_order() -> None:
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "A", "detail": "high"}},
        {"type": "text", "text": "well?"},
    ]
    found = turns({"role": "developer", "content": "short"}, {"role": "user", "content": parts})
    assert [(turn.role, turn.content) for turn in found] == [
        ("system", ("short",)),
        ("user", ("look", "A", "well?")),
    ]


def test_pictures_alone_go_before_what_the_user_says_next() -> None:
    red, blue = picture = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
    shown = [{"type": "image_url", "image_url": {"url": str(at)}} for at in range(2)]
    said = {"type": "text", "text": "and now?"}
    messages = [
        {"role": "user", "content": [shown[0]]},
        {"role": "user", "content": [shown[1]]},
        {"role": "user", "content": "what are they?"},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "colours"},
        {"role": "user", "content": [shown[0], said]},
        {"role": "user", "content": [said]},
        {"role": "user", "content": [shown[1]]},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": [shown[0]]},
    ]
    read = parse_chat_request(body(messages=messages), LIMITS)
    found = read_messages(read, lambda url: picture[int(url)])
    assert [(turn.role, turn.content) for turn in found] == [
        ("user", (red, blue, "what are they?")),
        ("user", ("well?",)),
        ("assistant", ("colours",)),
        ("user", (red, "and now?")),
        ("user", ("and now?",)),
        ("user", (blue,)),
        ("assistant", ("blue",)),
        ("user", (red,)),
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "assistant", "content": None}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0.type"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.image_url"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]},
            "messages.0.content.0.image_url",
        ),
    ],
)
def test_turns_that_are_refused(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        turns(message)
    assert refused.value.param == param


def test_too_many_pictures_are_refused_before_any_is_opened() -> None:
    shown = [{"type": "image_url", "image_url": {"url": "A"}}] * 3
    request = parse_chat_request(body(messages=[{"role": "user", "content": shown}]), LIMITS)
    assert image_urls(request, Limits(images=3)) == ["A"] * 3
    with pytest.raises(RequestRefused, match="3 pictures, and at most 2"):
        image_urls(request, Limits(images=2))


def test_combinations() -> None:
    assert parse_all("vhr") == (VHR(),)
    assert parse_all("vhr:layers=1/2+m3id:decay=0.5") == (VHR(layers=(1, 2)), M3ID(decay=0.5))
    for text, error in (
        ("vhr+vhr", ConflictingMethods),
        ("vhr+nope", UnknownMethod),
        ("", UnknownMethod),
        ("vhr+", InvalidParameter),
    ):
        with pytest.raises(KeepsightError) as refused:
            parse_all(text)
        assert isinstance(refused.value, (error, UnknownMethod))


def test_names() -> None:
    models = ModelRegistry.from_specs("org/toy", ["m3id", "vhr + m3id:decay=0.5"])
    assert models.names == ["org/toy", "org/toy:m3id", "org/toy:vhr+m3id:decay=0.5"]
    assert models.methods("org/toy") == ()
    assert models.methods("org/toy:vhr+m3id:decay=0.5") == (VHR(), M3ID(decay=0.5))
    for name in ("toy", "m3id", "org/toy:", "org/toy:vhr", "other:m3id", "org/toy:m3id:decay=1"):
        with pytest.raises(UnknownModelName):
            models.methods(name)
    with pytest.raises(InvalidParameter, match="given twice"):
        ModelRegistry.from_specs("toy", ["m3id", " m3id "])


def test_requests_reach_no_files() -> None:
    models = ModelRegistry.from_specs("toy", ["var:calibration=known.json"])
    assert models.parse_untrusted(["m3id", "vhr"]) == (M3ID(), VHR())
    assert models.parse_untrusted(["var:calibration=known.json"]) == (VAR(calibration="known.json"),)
    with pytest.raises(OperatorOnly, match="a request may not"):
        models.parse_untrusted(["var:calibration=/etc/passwd"])
    with pytest.raises(ConflictingMethods):
        models.parse_untrusted(["m3id", "m3id"])
    assert ModelRegistry.from_specs("toy", ["var"], "c.json").methods("toy:var") == (
        VAR(calibration="c.json"),
    )
    assert ModelRegistry.from_specs("toy", [], "c.json").parse_untrusted(["var"]) == (
        VAR(calibration="c.json"),
    )


def test_clients_do_not_see_where_the_calibration_lies() -> None:
    models = ModelRegistry.from_specs("toy", ["var", "vhr+var:tau=3"], "/home/somebody/c.json")
    assert models.specs("toy:var") == ["var"]
    assert models.specs("toy:vhr+var:tau=3") == ["vhr", "var:tau=3.0"]
    assert VAR(calibration="/home/somebody/c.json") in models.methods("toy:var")
    status, told, _ = error_parts(BadCalibration("cannot read /home/somebody/c.json"))
    assert (status, "somebody" in str(told)) == (500, False)


def test_limits_are_numbers() -> None:
    with pytest.raises(InvalidParameter, match="image pixels=0"):
        Limits(image_pixels=0)
