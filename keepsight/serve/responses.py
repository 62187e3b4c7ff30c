"""Builds the JSON that is sent: completions and chunks of OpenAI's own classes, and grounding beside them on request.

Only fields that were set are sent (``exclude_unset``), because OpenAI's clients tell a missing field from ``null``. Fields
that OpenAI sends as ``null`` are therefore set to None explicitly.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import CompletionUsage, Model
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
)
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from starlette.responses import JSONResponse, Response

from keepsight.files import finite_or_none
from keepsight.grounding.scores import Figures, Grounding
from keepsight.inference.detokenizer import BROKEN, Finish, Token
from keepsight.serve.errors import (
    Busy,
    GenerationFailed,
    RequestRefused,
    ShuttingDown,
    code_of,
    is_client_safe,
)
from keepsight.serve.request_handler import GROUNDING_SETTINGS, ParsedRequest
from keepsight.serve.requests import GenerationEvent

log = logging.getLogger("keepsight.serve")


@dataclass(eq=False)
class ResponseBuilder:
    """Turns the events of one request into the JSON that is sent.

    Args:
        request: the request that is answered.
        id: the id of the answer, which all of its chunks carry; by default a fresh one.
        created: when the answer began, in seconds since 1970; by default now.
    """

    request: ParsedRequest
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _texts: dict[int, str] = field(default_factory=dict)
    _last_events: dict[int, GenerationEvent] = field(default_factory=dict)

    def chunks(self, event: GenerationEvent) -> Iterator[dict[str, Any]]:
        """The chunks of a stream for one event, which must not be a failure. The events of a choice must come in order."""
        index = event.index
        # As in OpenAI's streams, the first chunk of a choice holds the role and an empty text
        if index not in self._texts:
            self._texts[index] = ""
            yield self._chunk([_chunk_choice(index, ChoiceDelta(role="assistant", content=""))])
        tokens, text = event.piece.tokens, event.piece.text
        self._texts[index] += text  # the words of the last chunk need the whole text
        if tokens or text:
            more = self._extension(tokens)
            if self.request.logprobs:
                more["logprobs"] = ChunkLogprobs(content=_logprobs(tokens), refusal=None)
            yield self._chunk([_chunk_choice(index, ChoiceDelta(content=text), **more)])
        if event.finish is not None:
            self._last_events[index] = event
            more = self._extension((), event.grounding, self._texts[index])
            yield self._chunk([_chunk_choice(index, ChoiceDelta(), event.finish, **more)])

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk of usage figures after the last choice, for requests with ``include_usage``."""
        return self._chunk([], usage=_usage(list(self._last_events.values())))

    def completion(self, events: Sequence[GenerationEvent]) -> dict[str, Any]:
        """The whole answer, from all events of all choices. The events of each choice must be in order."""
        choices = []
        last_events = []
        for index in range(len(self.request.generation_requests)):
            own = [event for event in events if event.index == index]
            last_events.append(own[-1])
            text = "".join(event.piece.text for event in own)
            tokens = [token for event in own for token in event.piece.tokens]
            logprobs = (
                ChoiceLogprobs(content=_logprobs(tokens), refusal=None) if self.request.logprobs else None
            )
            choices.append(
                Choice(
                    index=index,
                    message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
                    # The field's type allows None, which the last event of a completed answer never has
                    finish_reason=own[-1].finish or "stop",
                    logprobs=logprobs,
                    **self._extension(tokens, own[-1].grounding, text),
                )
            )
        return ChatCompletion(
            id=self.id,
            choices=choices,
            created=self.created,
            model=self.request.model,
            object="chat.completion",
            usage=_usage(last_events),
        ).model_dump(mode="json", exclude_unset=True)

    def _chunk(self, choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> dict[str, Any]:
        """One chunk of the stream as plain data."""
        # With include_usage, OpenAI sends "usage": null in every chunk but the last
        more: dict[str, Any] = {"usage": usage} if self.request.include_usage else {}
        return ChatCompletionChunk(
            id=self.id,
            choices=choices,
            created=self.created,
            model=self.request.model,
            object="chat.completion.chunk",
            **more,
        ).model_dump(mode="json", exclude_unset=True)

    def _extension(
        self, tokens: Sequence[Token], grounding: Grounding | None = None, text: str = ""
    ) -> dict[str, Any]:
        """The field ``keepsight`` of a choice, or nothing if no grounding was requested or there is none yet.

        OpenAI's classes accept further fields, and clients find them as attributes.
        """
        if self.request.threshold is None:
            return {}
        content: dict[str, Any] = {}
        if tokens:
            content["tokens"] = [_token(token) for token in tokens]
        if grounding is not None:
            content["words"] = _words(grounding, text, self.request.threshold)
            content["threshold"] = self.request.threshold
            content |= GROUNDING_SETTINGS
        return {"keepsight": {"grounding": content}} if content else {}


def _chunk_choice(index: int, delta: ChoiceDelta, finish: Finish | None = None, **more: Any) -> ChunkChoice:
    """A choice of a chunk. Its finish reason is always set, because OpenAI sends ``null`` until the last chunk."""
    return ChunkChoice(index=index, delta=delta, finish_reason=finish, **more)


def model_card(name: str, created: int, methods: Sequence[str]) -> dict[str, Any]:
    """One entry of the list of models.

    Args:
        name: the model name.
        created: seconds since 1970.
        methods: the specs of the methods that the name stands for.
    """
    card = Model(id=name, created=created, object="model", owned_by="keepsight")
    return {**card.model_dump(mode="json", exclude_unset=True), "keepsight": {"methods": list(methods)}}


def error_response(error: Exception) -> Response:
    """The response for an error. An error whose message the client may not read is logged."""
    status, body, headers = error_parts(log_and_detach(error))
    return JSONResponse(body, status, headers)


def log_and_detach(error: Exception) -> Exception:
    """Log the error if the client does not get its message, and return it without its traceback.

    The frames of the traceback hold the images of the request, and are only freed by the garbage collector's search for
    cycles.
    """
    if not is_client_safe(error):
        log.error("a request failed", exc_info=error)
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def error_parts(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The HTTP status, the body and the headers of the response for an error, in OpenAI's shape."""
    param = code = None
    headers: dict[str, str] = {}
    if isinstance(error, RequestRefused):
        status, kind, param, code = error.status, error.kind, error.param, error.code
        headers |= error.headers
    elif isinstance(error, Busy):
        status, kind, code = 429, "rate_limit_error", "queue_full"
        headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, ShuttingDown):
        status, kind, code = 503, "server_error", "shutting_down"
    elif isinstance(error, GenerationFailed) or not is_client_safe(error):
        status, kind = 500, "server_error"
    else:  # the named errors of methods, processors and images: the request asked for what does not work
        status, kind, code = 400, "invalid_request_error", code_of(error)
    message = (
        " ".join(str(error).split()) if is_client_safe(error) else "an unexpected error: see the server's log"
    )
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers


def _usage(last_events: Sequence[GenerationEvent]) -> CompletionUsage:
    """The usage figures of all choices, from the last event of each. Their common prompt counts once."""
    prompt = last_events[0].prompt_tokens
    generated = sum(event.tokens for event in last_events)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def _logprobs(tokens: Sequence[Token]) -> list[ChatCompletionTokenLogprob]:
    """The log-probabilities of tokens, in nats. Tokens for which none was recorded are left out."""
    return [
        ChatCompletionTokenLogprob(
            token=token.text,
            bytes=_bytes(token.text),
            logprob=token.logprob,
            top_logprobs=[
                TopLogprob(token=text, bytes=_bytes(text), logprob=value) for text, value in token.top
            ],
        )
        for token in tokens
        if token.logprob is not None
    ]


def _bytes(text: str) -> list[int] | None:
    """The bytes of a token's text.

    They are None for a token that is part of a character, because its text is a replacement character and not its bytes.
    """
    return None if BROKEN in text else list(text.encode())


def _token(token: Token) -> dict[str, Any]:
    """The grounding of one token as plain data, in nats."""
    figures = dict(zip(Figures._fields, token.figures or (), strict=True))
    return {
        "text": token.text,
        "span": list(token.span),
        "with_image": finite_or_none(figures["with_image"]),
        "without_image": finite_or_none(figures["without_image"]),
        "difference": finite_or_none(figures["with_image"] - figures["without_image"]),
        "contrast": finite_or_none(figures["contrast"]),
    }


def _words(grounding: Grounding, text: str, threshold: float) -> list[dict[str, Any]]:
    """The grounding of the object words of an answer as plain data, in nats."""
    return [
        {
            "word": word.word,
            "object": word.object,
            "span": list(word.span),
            "difference": finite_or_none(word.difference),
            "support": finite_or_none(word.support),
            "unsupported": word.support < threshold,
        }
        for word in grounding.words()
        if word.span[1] <= len(text)  # a stop text may have cut the answer short within a word
    ]
