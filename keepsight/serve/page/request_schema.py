"""What the page asks of the server, read from JSON: every field checked, none guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keepsight.registry import parse
from keepsight.serve.errors import RequestRefused
from keepsight.serve.image_decoding import open_bytes, read_data_uri
from keepsight.serve.limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

    from keepsight.demo.world import Scene
    from keepsight.method import Method

SCENE = re.compile(r"([a-z-]{1,20}):(\d{1,9})")
QUESTION = 2000
"""Letters of the longest question."""
METHODS = 8
"""Methods that compose at most; there are fewer of them."""
COMMAS = 10_000
"""More than any request of the page has. A parser of JSON lets no other thread run, and this bounds what it has to make."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture, and how it is to be answered.

    Args:
        file: the picture's bytes, not yet decoded; None where it is a ``scene`` of the demo world.
        methods: in their order; none is the plain model.
        tokens: of the longest answer.
        answer: the tokens of an answer that was given, to be looked at once more.
    """

    question: str
    file: bytes | None = field(default=None, repr=False)
    scene: Scene | None = None
    methods: tuple[Method, ...] = ()
    tokens: int = 128
    answer: tuple[int, ...] | None = None

    def picture(self, limits: Limits) -> Image:
        """The picture, decoded. Raises ``BadPicture``."""
        if self.scene is not None:
            return self.scene.image()
        assert self.file is not None
        return open_bytes(self.file, limits)


def read_json(body: bytes) -> Mapping[str, Any]:
    """A body as a JSON object.

    Raises:
        RequestRefused: it is none, or has too many parts.
    """
    if body.count(b",") > COMMAS:
        raise RequestRefused("the JSON has too many parts: the page sends a picture, a question and a method")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestRefused("the request is not JSON") from None
    if not isinstance(found, dict):
        raise RequestRefused("the request is not a JSON object")
    return found


def read(body: bytes, limits: Limits, *, vocabulary: int, again: bool) -> Asked:
    """A request of the page.

    Args:
        vocabulary: how many tokens the model knows.
        again: whether it is about an answer that was given.

    Raises:
        RequestRefused: a field is missing, unknown, of the wrong type or out of its range.
        BadPicture: the picture's data URI is broken.
        UnknownMethod, UnknownParameter, InvalidParameter, WorldError: as their makers.
    """
    given = read_json(body)
    allowed = {"picture", "question", "method"} | ({"answer"} if again else {"tokens"})
    if unknown := sorted(set(given) - allowed):
        raise RequestRefused(f"unknown field {unknown[0][:40]!r}", param=unknown[0][:40])
    question = _text(given, "question", QUESTION).strip()
    if not question:
        raise RequestRefused("the question is empty: ask something", param="question")
    file, scene = _picture(given.get("picture"), limits)
    specs = _text(given, "method", 2000).split()
    if len(specs) > METHODS:
        raise RequestRefused(f"{len(specs)} methods are too many: compose at most {METHODS}", param="method")
    return Asked(
        question=question,
        file=file,
        scene=scene,
        methods=tuple(_method(spec) for spec in specs),
        tokens=128 if again else _whole(given, "tokens", 1, limits.tokens),
        answer=_ids(given.get("answer"), vocabulary, limits.tokens) if again else None,
    )


def find_scene(name: str) -> Scene:
    """The scene of a name such as ``test-shifted:5``.

    Raises:
        RequestRefused: no such name. WorldError: no such split or number.
    """
    from keepsight.demo.world import scene

    named = SCENE.fullmatch(name)
    if named is None:
        raise RequestRefused("a drawn scene is named like test-shifted:5", param="picture")
    return scene(named[1], int(named[2]))


def _picture(given: Any, limits: Limits) -> tuple[bytes | None, Scene | None]:
    if isinstance(given, dict) and set(given) == {"scene"} and isinstance(given["scene"], str):
        return None, find_scene(given["scene"])
    if isinstance(given, dict) and set(given) == {"data"} and isinstance(given["data"], str):
        return read_data_uri(given["data"], limits), None
    raise RequestRefused("picture must hold either a scene or data", param="picture")


def _method(spec: str) -> Method:
    """A method that reads no file: which files a server reads is for whoever starts it to say."""
    found = parse(spec)
    for item in found.parameters():
        if str(item.type).startswith("str") and not item.metadata["choices"] and getattr(found, item.name):
            raise RequestRefused(
                f"{found.name()}: {item.name} names a file: give it to the server with --calibration",
                param="method",
            )
    return found


def _text(given: Mapping[str, Any], name: str, longest: int) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise RequestRefused(f"{name} must be a text", param=name)
    if len(value) > longest:
        raise RequestRefused(f"{name} has {len(value)} letters: at most {longest} are taken", param=name)
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestRefused(f"{name} holds half a letter (a lone surrogate)", param=name)
    return value


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestRefused(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _ids(value: Any, vocabulary: int, longest: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= longest:
        raise RequestRefused(f"answer must be a list of 1 to {longest} token ids", param="answer")
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < vocabulary for one in value):
        raise RequestRefused(f"answer must hold token ids below {vocabulary}", param="answer")
    return tuple(value)
