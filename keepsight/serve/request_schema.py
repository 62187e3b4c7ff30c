"""The fields of a chat request and what each may hold. Whatever is refused is refused with the name of its field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from keepsight.serve.errors import InvalidImage, RequestRefused
from keepsight.serve.limits import Limits
from keepsight.serve.prompts import ChatMessage, Role

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_NAME_LENGTH = 1000
"""Characters of a model name, or of one spec of ``keepsight.methods``."""
MAX_JSON_VALUES = 10_000
"""The largest number of JSON values (texts, numbers, lists, objects) in a body, besides those of its messages."""
MAX_JSON_VALUES_PER_MESSAGE = 40
"""JSON values in a body for each message that ``Limits.messages`` allows."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class _LenientModel(BaseModel):
    """A pydantic model that ignores unknown fields, as clients of OpenAI expect. Known fields must have their type."""

    # Without strict, pydantic would read "1" as a number and 1 as a boolean
    model_config = ConfigDict(extra="ignore", strict=True)


class KeepsightOptions(BaseModel):
    """The field ``keepsight`` of a request, beyond OpenAI's protocol. Unknown options are refused.

    Args:
        methods: specs that replace the methods of the model name. An empty list is the plain model.
        grounding: whether to send how far the image supports each token and each object word.
        threshold: words whose support is below it are flagged, in nats.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    # fail_fast ends the check of a list at its first wrong item. pydantic would otherwise make an error of each item, and a
    # dictionary of each error: two MiB of wrong items took a gigabyte, and stopped the server for 16 seconds
    methods: list[Annotated[str, Field(max_length=MAX_NAME_LENGTH)]] | None = Field(
        default=None, max_length=8, fail_fast=True
    )
    grounding: bool | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """Drop all unknown options but one. One is enough to refuse the request, and pydantic makes an error of each."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        unknown = next((name for name in given if name not in known), None)
        return {name: value for name, value in given.items() if name in known or name == unknown}


class StreamOptions(_LenientModel):
    """The field ``stream_options``: whether the stream ends with a chunk of usage figures."""

    include_usage: bool | None = None


class RequestMessage(_LenientModel):
    """One entry of ``messages``. The parts of its content are checked by ``read_messages``, which opens their images."""

    role: str
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


class ChatRequest(_LenientModel):
    """The fields of ``POST /v1/chat/completions`` that have a meaning here. Others are ignored."""

    model: str = Field(max_length=MAX_NAME_LENGTH)
    messages: list[RequestMessage] = Field(min_length=1, fail_fast=True)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # These would change the answer and are not supported. They are read so that they can be refused, unless they are empty
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    modalities: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    keepsight: KeepsightOptions | None = None

    @property
    def options(self) -> KeepsightOptions:
        """The field ``keepsight``, or its defaults if the request has none."""
        return self.keepsight or KeepsightOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts, none, one or several."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def parse_chat_request(body: bytes, limits: Limits) -> ChatRequest:
    """The fields of a request's body, checked one by one. Images are not decoded, and methods are not parsed.

    Args:
        body: a JSON object in UTF-8, with or without a byte order mark.
        limits: the bounds on the request.

    Raises:
        RequestRefused: the body is no JSON, a field has a wrong value, or it asks for what this server does not support.
    """
    try:
        text = body.decode("utf-8-sig")
        most = MAX_JSON_VALUES + MAX_JSON_VALUES_PER_MESSAGE * limits.messages
        if has_more_values(text, most):
            raise RequestRefused(f"the body holds more than {most:,} values, which is the limit: send less")
        found = json.loads(text, parse_constant=_no_constant)
    except RequestRefused:  # it is a ValueError too, by way of InputError
        raise
    # The JSON parser recurses into nested lists and objects
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {_short(error)}") from None
    if not isinstance(found, dict):
        raise RequestRefused("the body must be a JSON object with model and messages")
    # UTF-8 itself holds no surrogates, so that only an escape can bring one in, and most bodies need no search
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(found)
    # Counted before pydantic makes an object of each message
    messages = found.get("messages")
    if isinstance(messages, list) and len(messages) > limits.messages:
        raise RequestRefused(
            f"the conversation has {len(messages):,} messages, and the limit is {limits.messages:,}: send the last ones",
            param="messages",
        )
    try:
        request = ChatRequest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = _short(".".join(str(part) for part in first["loc"]))
        raise RequestRefused(f"{where}: {_short(first['msg'])}", param=where) from None
    _check(request, limits)
    return request


# The signs by which values are counted, and the rest of a string up to its closing quotation mark
_OPENER = re.compile(r'[,\[{"]')
_STRING_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*){0,256}("?)', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def has_more_values(text: str, most: int) -> bool:
    """Whether a JSON text holds more than ``most`` values, counted without creating any of them.

    A body of a few megabytes can hold millions of small values, which would take gigabytes as Python objects. Counting
    stops after ``most`` values. Commas and brackets within strings do not count.

    >>> has_more_values('{"a": [1, "2,3,4"]}', 4), has_more_values('{"a": [1, 2, 3, 4]}', 4)
    (False, True)
    """
    # Signs within strings are counted here as well. The sum can therefore only be too large, and where it is small enough,
    # as in nearly every request, the slower walk below is not needed
    if sum(map(text.count, ",[{")) <= most:
        return False
    at = seen = 0
    while seen <= most:
        found = _OPENER.search(text, at)
        if found is None:
            return False
        at = found.end()
        if found.group() != '"':
            seen += 1
            continue
        while at < len(text):  # a bounded number of escapes at a time, because the matcher remembers each
            inside = _STRING_REST.match(text, at)
            if inside is None or inside.end() == at:
                return False  # the string has no end; the JSON parser will report where
            at = inside.end()
            if inside.group(1):
                break
    return True


def _check_surrogates(found: dict[str, Any]) -> None:
    """Refuse lone surrogates, by the name of the field that holds them. Tokenizers and UTF-8 cannot represent them."""
    for name, value in found.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            # A field that is not known here may have any name, which may hold a surrogate itself
            where = name if name in ChatRequest.model_fields else None
            raise RequestRefused(
                f"{where or 'a field'}: a text holds half a letter (a lone surrogate): send whole ones",
                param=where,
            ) from None


def _no_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python's JSON parser takes and JSON does not have."""
    raise RequestRefused(f"{name} is no number in JSON")


def _check(request: ChatRequest, limits: Limits) -> None:
    """Refuse fields that are not supported, that exceed a limit, or that have no effect beside the others."""

    def refuse(param: str, why: str) -> None:
        raise RequestRefused(f"{param}: {why}", param=param)

    for name in ("frequency_penalty", "presence_penalty", "logit_bias", "tools", "functions"):
        if getattr(request, name):  # 0 and empty values would change nothing, and are accepted
            refuse(name, "not supported by this server: leave it out")
    if request.response_format and request.response_format.get("type", "text") != "text":
        refuse("response_format", "only text can be answered")
    if request.modalities and request.modalities != ["text"]:
        refuse("modalities", "only text can be answered")
    # A request is queued as a whole, so more answers than may wait would never be generated
    choices = min(limits.choices, limits.queue)
    if request.n is not None and request.n > choices:
        refuse("n", f"{request.n} is more than the limit of {choices}")
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(request, name)
        if value is not None and value > limits.tokens:
            refuse(name, f"{value:,} is more than the limit of {limits.tokens:,}")
    if len(request.stops) > 4 or not all(0 < len(stop) <= 1000 for stop in request.stops):
        refuse("stop", "at most four texts of 1 to 1000 letters")
    if request.top_logprobs is not None and not request.logprobs:
        refuse("top_logprobs", "has no effect without logprobs: set that to true")
    if request.stream_options is not None and not request.stream:
        refuse("stream_options", "has no effect without stream: set that to true")


def image_urls(request: ChatRequest, limits: Limits) -> list[str]:
    """The URLs of the request's ``image_url`` parts, in their order. Parts without a URL are refused later.

    Raises:
        RequestRefused: there are more images than ``limits.images``.
    """
    parts = [
        part.get("image_url")
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
        if part.get("type") == "image_url"
    ]
    if len(parts) > limits.images:
        raise RequestRefused(
            f"the conversation holds {len(parts)} pictures, and at most {limits.images} are taken:"
            " leave out older ones",
            param="messages",
        )
    urls = (part.get("url") if isinstance(part, dict) else part for part in parts)
    return [url for url in urls if isinstance(url, str)]


def read_messages(request: ChatRequest, open_image: Callable[[str], Image]) -> tuple[ChatMessage, ...]:
    """The conversation with its images opened. A user's message of images alone is merged with the user's next message.

    Args:
        request: the request.
        open_image: opens the image of a URL. It is called for one image after another, in their order.

    Raises:
        RequestRefused: a role or a part that is not supported.
        InvalidImage: from ``open_image``, with the message named.
    """
    return _merge_image_messages(
        _read_message(at, message, open_image) for at, message in enumerate(request.messages)
    )


def _merge_image_messages(messages: Iterable[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The same messages, with images that the user sent in a message of their own put before what the user said next.

    Some apps (Gradio's chat) send images in this way. Left apart, they would be turns without an answer, on which models
    were not trained and which many chat templates refuse.
    """
    merged: list[ChatMessage] = []
    for message in messages:
        before = merged[-1] if merged else None
        if before and before.role == message.role == "user" and before.images and not before.texts:
            merged[-1] = ChatMessage("user", before.content + message.content)
        else:
            merged.append(message)
    return tuple(merged)


def _read_message(at: int, message: RequestMessage, open_image: Callable[[str], Image]) -> ChatMessage:
    """The message at this position of the conversation, with its images opened."""
    where = f"messages.{at}"
    role = _ROLES.get(message.role)
    if role is None:
        raise RequestRefused(
            f"{where}.role: {message.role[:50]!r} is not one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    # OpenAI allows null beside tool calls, which are not supported here
    if message.content is None:
        raise RequestRefused(f"{where}.content: there is none", param=f"{where}.content")
    if isinstance(message.content, str):
        return ChatMessage(role, (message.content,))
    return ChatMessage(
        role,
        tuple(
            _read_part(f"{where}.content.{number}", part, open_image)
            for number, part in enumerate(message.content)
        ),
    )


def _read_part(where: str, part: dict[str, Any], open_image: Callable[[str], Image]) -> str | Image:
    """One part of a message's content: a text, or an image that was opened."""
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        url = part.get("image_url")
        # OpenAI's form is an object that holds the URL. The URL alone is understood as well
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise RequestRefused(
                f"{where}.image_url: an object with a url is needed", param=f"{where}.image_url"
            )
        try:
            return open_image(url)
        except InvalidImage as error:
            raise InvalidImage(f"{where}: {error}", param=where) from None
    raise RequestRefused(
        f"{where}: a part must be a text or an image_url, not {str(kind)[:50]!r}", param=f"{where}.type"
    )


def _short(error: object) -> str:
    """An error's message on one line, cut at 300 characters because it may repeat what the client has sent."""
    return " ".join(str(error).split())[:300]
