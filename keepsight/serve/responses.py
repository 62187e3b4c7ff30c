"""What is sent: completions and chunks in the words of OpenAI's own library, grounding beside them for who asked."""

from __future__ import annotations

import logging
import math
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

from keepsight.grounding.scores import Figures, Grounding
from keepsight.inference.detokenizer import BROKEN, Finish, Token
from keepsight.serve.errors import (
    Busy,
    GenerationFailed,
    RequestRefused,
    ShuttingDown,
    code_of,
    tellable,
)
from keepsight.serve.request_handler import GROUNDED_BY, Order
from keepsight.serve.requests import Event

log = logging.getLogger("keepsight.serve")


@dataclass(eq=False)
class Reply:
    """Everything sent for one order, kept together by one id."""

    order: Order
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    _texts: dict[int, str] = field(default_factory=dict)
    _ends: dict[int, Event] = field(default_factory=dict)

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """What a stream says of an event; errors are none of it."""
        if event.row not in self._texts:
            self._texts[event.row] = ""
            yield self._chunk([_step(event.row, ChoiceDelta(role="assistant", content=""))])
        tokens, text = event.piece.tokens, event.piece.text
        self._texts[event.row] += text
        if tokens or text:
            more = self._extra(tokens)
            if self.order.logprobs:
                more["logprobs"] = ChunkLogprobs(content=_logprobs(tokens), refusal=None)
            yield self._chunk([_step(event.row, ChoiceDelta(content=text), **more)])
        if event.finish is not None:
            self._ends[event.row] = event
            more = self._extra((), event.grounding, self._texts[event.row])
            yield self._chunk([_step(event.row, ChoiceDelta(), event.finish, **more)])

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk after the last, for who asked for it."""
        return self._chunk([], usage=_usage(list(self._ends.values())))

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The answer in one piece, from all that happened to it."""
        choices = []
        ends = []
        for row in range(len(self.order.asks)):
            own = [event for event in events if event.row == row]
            ends.append(own[-1])
            text = "".join(event.piece.text for event in own)
            tokens = [token for event in own for token in event.piece.tokens]
            logprobs = (
                ChoiceLogprobs(content=_logprobs(tokens), refusal=None) if self.order.logprobs else None
            )
            choices.append(
                Choice(
                    index=row,
                    message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
                    finish_reason=own[-1].finish or "stop",
                    logprobs=logprobs,
                    **self._extra(tokens, own[-1].grounding, text),
                )
            )
        return ChatCompletion(
            id=self.id,
            choices=choices,
            created=self.created,
            model=self.order.model,
            object="chat.completion",
            usage=_usage(ends),
        ).model_dump(mode="json", exclude_unset=True)

    def _chunk(self, choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> dict[str, Any]:
        more: dict[str, Any] = {"usage": usage} if self.order.usage else {}
        return ChatCompletionChunk(
            id=self.id,
            choices=choices,
            created=self.created,
            model=self.order.model,
            object="chat.completion.chunk",
            **more,
        ).model_dump(mode="json", exclude_unset=True)

    def _extra(
        self, tokens: Sequence[Token], found: Grounding | None = None, text: str = ""
    ) -> dict[str, Any]:
        """Our own field of a choice, for who asked for grounding; nothing else is ever there."""
        if self.order.threshold is None:
            return {}
        told: dict[str, Any] = {}
        if tokens:
            told["tokens"] = [_token(token) for token in tokens]
        if found is not None:
            told |= {"words": _words(found, text, self.order.threshold), "threshold": self.order.threshold}
            told |= GROUNDED_BY
        return {"keepsight": {"grounding": told}} if told else {}


def _step(row: int, delta: ChoiceDelta, finish: Finish | None = None, **more: Any) -> ChunkChoice:
    return ChunkChoice(index=row, delta=delta, finish_reason=finish, **more)


def model_card(name: str, created: int, methods: Sequence[str]) -> dict[str, Any]:
    """One entry of the list of models; ``methods`` are specs."""
    card = Model(id=name, created=created, object="model", owned_by="keepsight")
    return {**card.model_dump(mode="json", exclude_unset=True), "keepsight": {"methods": list(methods)}}


def failure(error: Exception) -> Response:
    """An error as a response."""
    status, body, headers = error_reply(logged(error))
    return JSONResponse(body, status, headers)


def logged(error: Exception) -> Exception:
    """The same, for who is told of it; what is not told whole is logged whole.

    It is parted from where it was raised: that holds whatever was at hand there until cycles are looked for.
    """
    if not tellable(error):
        log.error("a request failed", exc_info=error)
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def error_reply(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error, as OpenAI shapes them."""
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
    elif isinstance(error, GenerationFailed) or not tellable(error):
        status, kind = 500, "server_error"
    else:
        status, kind, code = 400, "invalid_request_error", code_of(error)
    message = " ".join(str(error).split()) if tellable(error) else "an unexpected error: see the server's log"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}, headers


def _usage(ends: Sequence[Event]) -> CompletionUsage:
    prompt = ends[0].prompt_tokens
    written = sum(event.tokens for event in ends)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


def _logprobs(tokens: Sequence[Token]) -> list[ChatCompletionTokenLogprob]:
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
    """None for a piece of a letter, which the text does not tell."""
    return None if BROKEN in text else list(text.encode())


def _token(token: Token) -> dict[str, Any]:
    figures = dict(zip(Figures._fields, token.figures or (), strict=True))
    return {
        "text": token.text,
        "span": list(token.span),
        "with_image": _finite(figures["with_image"]),
        "without_image": _finite(figures["without_image"]),
        "difference": _finite(figures["with_image"] - figures["without_image"]),
        "contrast": _finite(figures["contrast"]),
    }


def _words(found: Grounding, text: str, threshold: float) -> list[dict[str, Any]]:
    return [
        {
            "word": word.word,
            "object": word.object,
            "span": list(word.span),
            "difference": _finite(word.difference),
            "support": _finite(word.support),
            "unsupported": word.support < threshold,
        }
        for word in found.words()
        if word.span[1] <= len(text)
    ]


def _finite(value: float) -> float | None:
    """JSON has no infinity: what a method or the model's settings rule out has no figure."""
    return value if math.isfinite(value) else None
