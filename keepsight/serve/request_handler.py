"""From a request's body to what the engine is asked for: everything of a server that HTTP has no part in."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, KeepsightError
from keepsight.grounding.scores import AGGREGATE, SCORE, THRESHOLD
from keepsight.inference.loading import DEMO
from keepsight.serve.batching_engine import Engine
from keepsight.serve.errors import BadPicture, RequestRefused, code_of
from keepsight.serve.image_decoding import open_bytes, read_data_uri
from keepsight.serve.limits import Limits
from keepsight.serve.malloc_trim import LARGE, give_back
from keepsight.serve.model_registry import Menu
from keepsight.serve.prompts import context_length, longest_prompt, prepare_chat
from keepsight.serve.request_schema import ChatRequest, addresses, read_request, read_turns
from keepsight.serve.requests import Ask

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.method import Method


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request, ready for the engine.

    ``threshold`` is what words are flagged below; None where no grounding was asked for.
    """

    model: str
    asks: tuple[Ask, ...]
    stream: bool
    usage: bool
    logprobs: bool
    threshold: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Service:
    """One model behind a protocol.

    Args:
        engine: the model and its thread.
        menu: model names and their methods.
        api_key: without it nothing answers; None lets everybody in.
        fetch_urls: whether pictures may be fetched from the public web.
        loopback: whether requests must name this machine as their host, so that a page of a stranger, open in a browser
            here, cannot ask (DNS rebinding). Only without a key.
        host: a name by which requests may then call it besides localhost and loopback addresses.
        origins: web pages of these may ask (CORS): ``https://chat.example``, as browsers write them.
    """

    engine: Engine
    menu: Menu
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    fetch_urls: bool = False
    loopback: bool = True
    host: str = "localhost"
    origins: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    _processing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def parse(self, body: bytes) -> ChatRequest:
        """What a chat request asks for; its methods and pictures are not looked at. Not for an event loop, as all here.

        Raises:
            RequestRefused.
        """
        return read_request(body, self.limits)

    def elsewhere(self, request: ChatRequest) -> list[str]:
        """The addresses from which pictures have to be fetched; none where this server does not.

        Raises:
            RequestRefused: there are too many pictures.
        """
        urls = filter(_on_the_web, addresses(request, self.limits))
        return list(dict.fromkeys(urls)) if self.fetch_urls else []

    def order(self, request: ChatRequest, fetched: Mapping[str, bytes | BadPicture]) -> Order:
        """The same, its pictures opened and its prompt made.

        Args:
            fetched: what stands at the addresses ``elsewhere``, or why that is not known.

        Raises:
            RequestRefused, and the named errors of methods and processors.
        """
        pictures = _Pictures(self.limits, fetched)
        try:
            return self._order(request, pictures)
        except KeepsightError as error:
            # What it was raised from holds the pictures, until cycles are looked for
            error.__traceback__ = error.__context__ = error.__cause__ = None
            raise
        finally:
            if pictures.pixels > LARGE or pictures.broken:
                give_back()

    def _order(self, request: ChatRequest, pictures: _Pictures) -> Order:
        options = request.options
        recipes = self.menu.methods(request.model)
        if options.methods is not None:
            recipes = self._read(options.methods)
        turns = read_turns(request, pictures)
        if not pictures.pixels and (recipes or options.grounding):
            what = "+".join(recipe.name() for recipe in recipes) or "grounding"
            raise RequestRefused(
                f"the conversation holds no picture, and {what} needs one: add one, or ask the plain model"
                f" {self.menu.base!r}",
                param="messages",
            )
        with self._processing:  # tokenizers keep settings that two threads must not change at once
            inputs = prepare_chat(
                self.engine.processor, turns, longest=longest_prompt(self.engine.model, self.limits)
            )
        return Order(
            model=request.model,
            asks=tuple(self._ask(request, recipes, inputs, choice) for choice in range(request.n or 1)),
            stream=bool(request.stream),
            usage=bool(request.stream_options and request.stream_options.include_usage),
            logprobs=bool(request.logprobs),
            threshold=_or(options.threshold, THRESHOLD) if options.grounding else None,
        )

    def _read(self, specs: Sequence[str]) -> tuple[Method, ...]:
        try:
            return self.menu.read(specs)
        except RequestRefused:
            raise
        except InputError as error:
            raise RequestRefused(str(error), param="keepsight.methods", code=code_of(error)) from None

    def _ask(self, request: ChatRequest, recipes: Any, inputs: Any, choice: int) -> Ask:
        temperature = request.temperature
        if temperature is None:  # top_p says nothing of greedy search: who gives it wants to draw
            temperature = 0.0 if request.top_p is None else 1.0
        return Ask(
            inputs=inputs,
            methods=recipes,
            max_tokens=self._room(request, int(inputs["input_ids"].shape[1])),
            temperature=temperature,
            top_p=_or(request.top_p, 1.0),
            seed=None if request.seed is None else f"{request.seed}/{choice}",
            stop=request.stops,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            grounding=bool(request.options.grounding),
        )

    def _room(self, request: ChatRequest, prompt: int) -> int:
        """How long the answer may get: what was asked for, and what the model has positions for."""
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.tokens
        context = context_length(self.engine.model)
        return wanted if context is None else min(wanted, context - prompt)


class _Pictures:
    """Opens the pictures of one conversation, one after another, and counts their pixels.

    ``broken`` is whether one could not be opened: then its pixels, of which some may have been unpacked, are not counted.
    """

    def __init__(self, limits: Limits, fetched: Mapping[str, bytes | BadPicture]) -> None:
        self._limits, self._fetched = limits, fetched
        self.pixels = 0
        self.broken = False

    def __call__(self, url: str) -> Image:
        self.broken = True
        opened = open_bytes(self._content(url), self._limits, before=self.pixels)
        self.broken = False
        self.pixels += opened.width * opened.height
        return opened

    def _content(self, url: str) -> bytes:
        if not _on_the_web(url):
            return read_data_uri(url, self._limits)
        found = self._fetched.get(url)
        if found is None:
            raise BadPicture("this server fetches no pictures from the web: send it as a data URI")
        if isinstance(found, BadPicture):
            raise found
        return found


def _on_the_web(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def limits_for(model: str, limits: Limits) -> Limits:
    """The same; for the demo model, which was shown one picture at a time, with that as its limit."""
    from dataclasses import replace

    return replace(limits, images=1) if model == DEMO else limits


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


GROUNDED_BY = {"score": SCORE, "aggregate": AGGREGATE}
"""What words are judged by: see ``keepsight.grounding``."""
