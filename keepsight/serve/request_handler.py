"""Turns the body of a request into what the engine generates. Everything here is independent of HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keepsight.errors import InputError, KeepsightError
from keepsight.grounding.scores import AGGREGATE, SCORE, THRESHOLD
from keepsight.inference.loading import DEMO
from keepsight.serve.batching_engine import BatchingEngine
from keepsight.serve.errors import InvalidImage, RequestRefused, code_of
from keepsight.serve.image_decoding import decode_image, read_data_uri
from keepsight.serve.limits import Limits
from keepsight.serve.malloc_trim import LARGE_IMAGE_PIXELS, trim_memory
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.prompts import context_length, max_prompt_tokens, prepare_chat
from keepsight.serve.request_schema import ChatRequest, image_urls, parse_chat_request, read_messages
from keepsight.serve.requests import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.method import Method


@dataclass(frozen=True, kw_only=True)
class ParsedRequest:
    """A chat request that is ready for the engine.

    Args:
        model: the model name as the request wrote it, which the answer repeats.
        generation_requests: one for each of the ``n`` choices.
        stream: whether the answer is sent as server-sent events.
        include_usage: whether the stream ends with a chunk of usage figures.
        logprobs: whether log-probabilities are sent.
        threshold: words whose support is below it are flagged, in nats. None means that no grounding was requested.
    """

    model: str
    generation_requests: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool
    logprobs: bool
    threshold: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestHandler:
    """One served model: its names, the bounds on requests, and who may use it.

    Its methods block, so that an event loop has to call them in a thread. Any number of threads may call them.

    Args:
        engine: the model and its generation thread.
        models: the model names and their methods.
        limits: the bounds on every request.
        api_key: the key that every request must send. None lets everybody in.
        fetch_urls: whether images may be fetched from the public internet.
        loopback: whether requests must name this machine as their host. Without it a foreign web page, open in a browser on
            this machine, could send requests under a host name that resolves to this machine (DNS rebinding). It has no
            effect if there is an ``api_key``.
        host: one more host name under which such requests are accepted.
        origins: web pages of these origins may send requests (CORS), written as browsers do: ``https://chat.example``.
        created: when the server started, in seconds since 1970. The list of models shows it.
    """

    engine: BatchingEngine
    models: ModelRegistry
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    fetch_urls: bool = False
    loopback: bool = True
    host: str = "localhost"
    origins: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    _processor_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def parse(self, body: bytes) -> ChatRequest:
        """The fields of a chat request, checked one by one. Its methods and images are not looked at yet.

        Raises:
            RequestRefused: the body is no JSON, or a field has a wrong value.
        """
        return parse_chat_request(body, self.limits)

    def urls_to_fetch(self, request: ChatRequest) -> list[str]:
        """The web addresses of the request's images, each once. The list is empty if this server fetches no images.

        Raises:
            RequestRefused: there are too many images.
        """
        urls = filter(_is_web_url, image_urls(request, self.limits))
        return list(dict.fromkeys(urls)) if self.fetch_urls else []

    def prepare(self, request: ChatRequest, fetched: Mapping[str, bytes | InvalidImage]) -> ParsedRequest:
        """The request with its methods parsed, its images decoded and its prompt tokenized.

        Args:
            fetched: for each of ``urls_to_fetch`` the bytes of the file, or why it could not be fetched.

        Raises:
            RequestRefused: a model name, a method, an image or a conversation that this server does not take.
            KeepsightError: the named errors of methods and processors.
        """
        images = _ImageOpener(self.limits, fetched)
        # What holds images stands in a function of its own: all of it is freed before the memory is given back below
        try:
            return self._prepare(request, images)
        except KeepsightError as error:
            # The frames of the traceback hold the images, and are only freed by the garbage collector's search for cycles
            error.__traceback__ = error.__context__ = error.__cause__ = None
            raise
        finally:
            # Of a broken image, 190 MiB that had been unpacked before its file ended were kept by the allocator
            if images.pixels > LARGE_IMAGE_PIXELS or images.failed:
                trim_memory()

    def _prepare(self, request: ChatRequest, images: _ImageOpener) -> ParsedRequest:
        """What ``prepare`` returns. The model's name and the methods are checked before any image is decoded."""
        options = request.options
        recipes = self.models.methods(request.model)
        if options.methods is not None:
            recipes = self._parse_methods(options.methods)
        messages = read_messages(request, images)
        # Every method and grounding rest on what the image changes, so that they mean nothing in a conversation without one
        if not images.pixels and (recipes or options.grounding):
            what = "+".join(recipe.name() for recipe in recipes) or "grounding"
            raise RequestRefused(
                f"the conversation holds no picture, and {what} needs one: add one, or ask the plain model"
                f" {self.models.base!r}",
                param="messages",
            )
        with self._processor_lock:  # fast tokenizers keep settings that two threads must not change at once
            inputs = prepare_chat(
                self.engine.processor,
                messages,
                max_tokens=max_prompt_tokens(self.engine.model, self.limits),
            )
        return ParsedRequest(
            model=request.model,
            generation_requests=tuple(
                self._generation_request(request, recipes, inputs, choice) for choice in range(request.n or 1)
            ),
            stream=bool(request.stream),
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
            logprobs=bool(request.logprobs),
            threshold=_or(options.threshold, THRESHOLD) if options.grounding else None,
        )

    def _parse_methods(self, specs: Sequence[str]) -> tuple[Method, ...]:
        """The methods that a request names, with errors that name the field and keep the error's own code."""
        try:
            return self.models.parse_untrusted(specs)
        except InputError as error:
            raise RequestRefused(str(error), param="keepsight.methods", code=code_of(error)) from None

    def _generation_request(
        self, request: ChatRequest, recipes: tuple[Method, ...], inputs: Any, choice: int
    ) -> GenerationRequest:
        """What the engine generates for the choice of this number, counted from 0."""
        temperature = request.temperature
        if temperature is None:
            # Greedy decoding ignores top_p, so whoever sends top_p alone wants to sample
            temperature = 0.0 if request.top_p is None else 1.0
        return GenerationRequest(
            inputs=inputs,
            methods=recipes,
            max_tokens=self._max_new_tokens(request, int(inputs["input_ids"].shape[1])),
            temperature=temperature,
            top_p=_or(request.top_p, 1.0),
            # Choices of one request must differ, and each must be the same again under the same seed
            seed=None if request.seed is None else f"{request.seed}/{choice}",
            stop=request.stops,
            top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            grounding=bool(request.options.grounding),
        )

    def _max_new_tokens(self, request: ChatRequest, prompt_tokens: int) -> int:
        """The bound on the answer: what was requested, as far as the model has positions for it."""
        # OpenAI has replaced max_tokens by max_completion_tokens, and clients send either
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.tokens
        context = context_length(self.engine.model)
        return wanted if context is None else min(wanted, context - prompt_tokens)


class _ImageOpener:
    """Decodes the images of one conversation one after another, and counts their pixels.

    ``failed`` is True if an image could not be decoded. Part of it may have been unpacked by then, although its pixels are
    not counted.
    """

    def __init__(self, limits: Limits, fetched: Mapping[str, bytes | InvalidImage]) -> None:
        self._limits, self._fetched = limits, fetched
        self.pixels = 0
        self.failed = False

    def __call__(self, url: str) -> Image:
        self.failed = True  # until decode_image() has returned
        image = decode_image(self._content(url), self._limits, before=self.pixels)
        self.failed = False
        self.pixels += image.width * image.height
        return image

    def _content(self, url: str) -> bytes:
        """The bytes of the image file at ``url``, decoded from the URL itself or fetched before."""
        if not _is_web_url(url):
            return read_data_uri(url, self._limits)
        found = self._fetched.get(url)
        if found is None:
            raise InvalidImage("this server fetches no pictures from the web: send it as a data URI")
        if isinstance(found, InvalidImage):
            raise found
        return found


def _is_web_url(url: str) -> bool:
    """Whether a URL begins with ``http://`` or ``https://``."""
    return url[:8].lower().startswith(("http://", "https://"))


def limits_for(model: str, limits: Limits) -> Limits:
    """The limits for a model. The demo model gets a limit of one image, because it was trained on one at a time."""
    return replace(limits, images=1) if model == DEMO else limits


def _or(value: float | None, default: float) -> float:
    """``value``, or ``default`` for None. The operator ``or`` would replace 0 as well."""
    return default if value is None else value


GROUNDING_SETTINGS = {"score": SCORE, "aggregate": AGGREGATE}
"""How words are judged, as the answer reports it. ``keepsight.grounding`` explains the values."""
