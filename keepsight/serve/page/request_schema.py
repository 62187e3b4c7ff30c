"""Reads the page's requests from JSON. Every field is checked, and a field that is missing is refused and not guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keepsight.registry import parse_all
from keepsight.serve.errors import RequestRefused
from keepsight.serve.image_decoding import decode_image, read_data_uri
from keepsight.serve.limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.demo.world import Scene
    from keepsight.method import Method

SCENE = re.compile(r"([a-z-]{1,20}):(\d{1,9})")
"""The form of a scene's name: its split and its number."""
MAX_QUESTION_LENGTH = 2000
"""Characters of a question."""
MAX_SPEC_LENGTH = 2000
"""Characters of the methods' spec."""
MAX_METHODS = 8
"""Methods that are applied together."""
MAX_COMMAS = 10_000
"""More commas than any request of the page has. Python's JSON parser lets no other thread run while it works, so that its
work is bounded by what can be counted before."""


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A question about an image, and how it is to be answered.

    Args:
        question: what is asked.
        file: the bytes of the image's file, not decoded yet. None if the image is a ``scene``.
        scene: a scene of the demo world, whose objects are known. None if the image is a ``file``.
        methods: the methods in the order in which they are applied. An empty tuple is the plain model.
        tokens: the largest number of tokens of the answer; default 128.
        answer: the token ids of an answer that was given, whose attention maps are requested. None requests an answer.
    """

    question: str
    file: bytes | None = field(default=None, repr=False)
    scene: Scene | None = None
    methods: tuple[Method, ...] = ()
    tokens: int = 128
    answer: tuple[int, ...] | None = None

    def image(self, limits: Limits) -> Image:
        """The decoded image, RGB. A scene is drawn, and has 128 by 128 pixels.

        Args:
            limits: the bounds on an image that was uploaded.

        Raises:
            InvalidImage: the file is no image, or not one that the page takes.
        """
        if self.scene is not None:
            return self.scene.image()
        assert self.file is not None
        return decode_image(self.file, limits)


def read_json(body: bytes) -> Mapping[str, Any]:
    """A body as a JSON object.

    Raises:
        RequestRefused: the body is no JSON object, or has more than ``MAX_COMMAS`` commas.
    """
    if body.count(b",") > MAX_COMMAS:
        raise RequestRefused("the JSON has too many parts: the page sends a picture, a question and a method")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestRefused("the request is not JSON") from None
    if not isinstance(found, dict):
        raise RequestRefused("the request is not a JSON object")
    return found


def parse_page_request(body: bytes, limits: Limits, *, vocabulary: int, answered: bool) -> PageRequest:
    """A request of the page.

    Args:
        body: a JSON object.
        limits: the bounds on the image and the answer.
        vocabulary: the number of tokens that the model knows.
        answered: True for a request for attention maps of a given answer, False for a request for a new answer.

    Raises:
        RequestRefused: a field is missing, unknown, of the wrong type or out of its range.
        InvalidImage: the image's data URI is broken.
        OperatorOnly: the spec names a class that is not registered, a file or a model.
        UnknownMethod, UnknownParameter, InvalidParameter, ConflictingMethods: as ``keepsight.registry.parse_all``.
        WorldError: there is no such scene.
    """
    given = read_json(body)
    allowed = {"picture", "question", "method"} | ({"answer"} if answered else {"tokens"})
    if unknown := sorted(set(given) - allowed):
        raise RequestRefused(f"unknown field {unknown[0][:40]!r}", param=unknown[0][:40])
    question = _text(given, "question", MAX_QUESTION_LENGTH).strip()
    if not question:
        raise RequestRefused("the question is empty: ask something", param="question")
    file, scene = _image(given.get("picture"), limits)
    return PageRequest(
        question=question,
        file=file,
        scene=scene,
        methods=_methods(_text(given, "method", MAX_SPEC_LENGTH)),
        tokens=128 if answered else _whole_number(given, "tokens", 1, limits.tokens),
        answer=_token_ids(given.get("answer"), vocabulary, limits.tokens) if answered else None,
    )


def find_scene(name: str) -> Scene:
    """The scene of a name such as ``test-shifted:5``.

    Raises:
        RequestRefused: the name is not of this form.
        WorldError: there is no such split or number.
    """
    from keepsight.demo.world import scene

    named = SCENE.fullmatch(name)
    if named is None:
        raise RequestRefused("a drawn scene is named like test-shifted:5", param="picture")
    return scene(named[1], int(named[2]))


def _image(given: Any, limits: Limits) -> tuple[bytes | None, Scene | None]:
    """The bytes of the uploaded file or the scene, and None for the other one. Nothing is decoded yet."""
    if isinstance(given, dict) and set(given) == {"scene"} and isinstance(given["scene"], str):
        return None, find_scene(given["scene"])
    if isinstance(given, dict) and set(given) == {"data"} and isinstance(given["data"], str):
        return read_data_uri(given["data"], limits), None
    raise RequestRefused("picture must hold either a scene or data", param="picture")


def _methods(spec: str) -> tuple[Method, ...]:
    """The methods of a spec. An empty spec is the plain model."""
    if not spec.strip():
        return ()
    count = spec.count("+") + 1
    if count > MAX_METHODS:
        raise RequestRefused(f"{count} methods are too many: compose at most {MAX_METHODS}", param="method")
    # Anybody who reaches the page can write a spec: importing a class would run code, and a file could be any file
    return parse_all(spec, trusted=False)


def _text(given: Mapping[str, Any], name: str, longest: int) -> str:
    """The text of a field, with at most ``longest`` characters."""
    value = given.get(name)
    if not isinstance(value, str):
        raise RequestRefused(f"{name} must be a text", param=name)
    if len(value) > longest:
        raise RequestRefused(f"{name} has {len(value)} letters: at most {longest} are taken", param=name)
    # JSON may escape half of a surrogate pair, which tokenizers cannot encode as UTF-8
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestRefused(f"{name} holds half a letter (a lone surrogate)", param=name)
    return value


def _whole_number(given: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """The whole number of a field, from ``low`` to ``high``."""
    value = given.get(name)
    # In Python, True is an int
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestRefused(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _token_ids(value: Any, vocabulary: int, longest: int) -> tuple[int, ...]:
    """The ids of 1 to ``longest`` tokens, each below ``vocabulary``."""
    # An id beyond the vocabulary would be an index out of range in the model's embedding
    if not isinstance(value, list) or not 1 <= len(value) <= longest:
        raise RequestRefused(f"answer must be a list of 1 to {longest} token ids", param="answer")
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < vocabulary for one in value):
        raise RequestRefused(f"answer must hold token ids below {vocabulary}", param="answer")
    return tuple(value)
