"""What a chat request may hold, and what it comes to: turns, settings, refusals by the field's name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from keepsight.serve.errors import BadPicture, RequestRefused
from keepsight.serve.limits import Limits
from keepsight.serve.prompts import Role, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_NAME = 1000
"""Letters of a model's name, or of a method's spec."""
VALUES = 10_000
"""Values of JSON in a body, whatever its fields; ``VALUES_OF_MESSAGE`` more for each message that is taken."""
VALUES_OF_MESSAGE = 40
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class _Lenient(BaseModel):
    """Unknown fields are ignored, as clients of OpenAI expect; known ones must have their type."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Options(BaseModel):
    """Our own field of a request, ``keepsight``. A misspelt option is refused.

    Args:
        methods: specs that take the place of those the model name stands for; an empty list is the plain model.
        grounding: tell how far the picture supports each token and each object word.
        threshold: words whose support is below are flagged.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    methods: list[Annotated[str, Field(max_length=LONGEST_NAME)]] | None = Field(
        default=None, max_length=8, fail_fast=True
    )
    grounding: bool | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, given: Any) -> Any:
        """One misspelt option is enough to refuse: pydantic would make an error of each."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        unknown = next((name for name in given if name not in known), None)
        return {name: value for name, value in given.items() if name in known or name == unknown}


class StreamOptions(_Lenient):
    include_usage: bool | None = None


class Message(_Lenient):
    role: str
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None


class ChatRequest(_Lenient):
    """The fields of ``POST /v1/chat/completions`` that mean something here."""

    model: str = Field(max_length=LONGEST_NAME)
    messages: list[Message] = Field(min_length=1, fail_fast=True)
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
    # What changes the answer and cannot be had is refused unless it says nothing
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    modalities: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    keepsight: Options | None = None

    @property
    def options(self) -> Options:
        return self.keepsight or Options()

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def read_request(body: bytes, limits: Limits) -> ChatRequest:
    """A request's body, checked field by field; pictures are not looked at.

    Raises:
        RequestRefused: no JSON, a field with a wrong value, or one that asks for what this server cannot do.
    """
    try:
        text = body.decode("utf-8-sig")
        most = VALUES + VALUES_OF_MESSAGE * limits.messages
        if has_more_values(text, most):
            raise RequestRefused(f"the body holds more than {most:,} values, which is the limit: send less")
        found = json.loads(text, parse_constant=_no_constant)
    except RequestRefused:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {_short(error)}") from None
    if not isinstance(found, dict):
        raise RequestRefused("the body must be a JSON object with model and messages")
    if _HALF.search(text):
        _check_letters(found)
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


_OUTSIDE = re.compile(r'[,\[{"]')
_INSIDE = re.compile(r'[^"\\]*(?:\\.[^"\\]*){0,256}("?)', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def has_more_values(text: str, most: int) -> bool:
    """Whether a text of JSON holds more than ``most`` values, found out without making any of them.

    What comes after the first ``most`` is not looked at. Strings are skipped: a comma in one begins no value.

    >>> has_more_values('{"a": [1, "2,3,4"]}', 4), has_more_values('{"a": [1, 2, 3, 4]}', 4)
    (False, True)
    """
    if sum(map(text.count, ",[{")) <= most:
        return False
    at = seen = 0
    while seen <= most:
        found = _OUTSIDE.search(text, at)
        if found is None:
            return False
        at = found.end()
        if found.group() != '"':
            seen += 1
            continue
        while at < len(text):  # so many escapes at a time, since the matcher keeps note of each
            inside = _INSIDE.match(text, at)
            if inside is None or inside.end() == at:
                return False  # broken: the parser says where
            at = inside.end()
            if inside.group(1):
                break
    return True


def _check_letters(found: dict[str, Any]) -> None:
    for name, value in found.items():
        try:
            json.dumps([name, value], ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            where = name if name in ChatRequest.model_fields else None
            raise RequestRefused(
                f"{where or 'a field'}: a text holds half a letter (a lone surrogate): send whole ones",
                param=where,
            ) from None


def _no_constant(name: str) -> float:
    raise RequestRefused(f"{name} is no number in JSON")


def _check(request: ChatRequest, limits: Limits) -> None:
    def refuse(param: str, why: str) -> None:
        raise RequestRefused(f"{param}: {why}", param=param)

    for name in ("frequency_penalty", "presence_penalty", "logit_bias", "tools", "functions"):
        if getattr(request, name):
            refuse(name, "not supported by this server: leave it out")
    if request.response_format and request.response_format.get("type", "text") != "text":
        refuse("response_format", "only text can be answered")
    if request.modalities and request.modalities != ["text"]:
        refuse("modalities", "only text can be answered")
    choices = min(limits.choices, limits.queue)  # more answers than may wait would never have their turn
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


def addresses(request: ChatRequest, limits: Limits) -> list[str]:
    """What the request's ``image_url`` parts name, in their order; those without a text are left out.

    Raises:
        RequestRefused: there are too many pictures.
    """
    shown = [
        part.get("image_url")
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
        if part.get("type") == "image_url"
    ]
    if len(shown) > limits.images:
        raise RequestRefused(
            f"the conversation holds {len(shown)} pictures, and at most {limits.images} are taken:"
            " leave out older ones",
            param="messages",
        )
    urls = (one.get("url") if isinstance(one, dict) else one for one in shown)
    return [url for url in urls if isinstance(url, str)]


def read_turns(request: ChatRequest, picture: Callable[[str], Image]) -> tuple[Turn, ...]:
    """The conversation, its pictures opened. A user's message of pictures alone is one turn with the user's next.

    Args:
        picture: opens what an ``image_url`` names.

    Raises:
        RequestRefused: a role or a part that cannot be taken.
        BadPicture: from ``picture``, naming the message.
    """
    return _joined(_turn(at, message, picture) for at, message in enumerate(request.messages))


def _joined(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The same, with pictures that the user sent in a message of their own put before what the user said next.

    Some apps (Gradio's chat) send them so. Left apart, they would be turns without an answer, which models were not trained
    on and which many chat templates refuse.
    """
    joined: list[Turn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if before and before.role == turn.role == "user" and before.pictures and not before.texts:
            joined[-1] = Turn("user", before.content + turn.content)
        else:
            joined.append(turn)
    return tuple(joined)


def _turn(at: int, message: Message, picture: Callable[[str], Image]) -> Turn:
    where = f"messages.{at}"
    role = _ROLES.get(message.role)
    if role is None:
        raise RequestRefused(
            f"{where}.role: {message.role[:50]!r} is not one of {', '.join(_ROLES)}", param=f"{where}.role"
        )
    if message.content is None:
        raise RequestRefused(f"{where}.content: there is none", param=f"{where}.content")
    if isinstance(message.content, str):
        return Turn(role, (message.content,))
    return Turn(
        role,
        tuple(
            _part(f"{where}.content.{number}", part, picture) for number, part in enumerate(message.content)
        ),
    )


def _part(where: str, part: dict[str, Any], picture: Callable[[str], Image]) -> str | Image:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise RequestRefused(
                f"{where}.image_url: an object with a url is needed", param=f"{where}.image_url"
            )
        try:
            return picture(url)
        except BadPicture as error:
            raise BadPicture(f"{where}: {error}", param=where) from None
    raise RequestRefused(
        f"{where}: a part must be a text or an image_url, not {str(kind)[:50]!r}", param=f"{where}.type"
    )


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300]
