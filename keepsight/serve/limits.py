"""The bounds on what a server takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from keepsight.errors import InvalidParameter


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one request and on all of them together; each is 1 or more.

    Args:
        request_bytes: bytes of the body of a request.
        image_bytes: bytes of an image's file, after base64 was decoded.
        image_pixels: width times height of one image. It is read from the file's header, before anything is unpacked.
        images: the number of images in one conversation.
        messages: the number of messages in one conversation.
        prompt_tokens: tokens of one conversation, those of the images included. None is what the model has positions for.
        tokens: the most that a request's ``max_tokens`` may ask for.
        choices: the most that a request's ``n`` may ask for.
        batch: answers that are generated together; 1 generates one after another.
        queue: requests that may wait; further ones are refused with status 429.

    Raises:
        InvalidParameter: a bound is below 1.
    """

    request_bytes: int = 20 << 20
    image_bytes: int = 10 << 20
    image_pixels: int = 50_000_000
    images: int = 16
    messages: int = 1000
    prompt_tokens: int | None = None
    tokens: int = 4096
    choices: int = 8
    batch: int = 8
    queue: int = 32

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not (1 <= value < math.inf):
                raise InvalidParameter(
                    f"the limit {item.name.replace('_', ' ')}={value} must be a whole number, 1 or more"
                )


CONVERSATION_PIXELS_FACTOR = 2
"""All images of a conversation together may have this many times ``image_pixels``."""
MAX_ASPECT_RATIO = 100
"""The longer side of an image over its shorter one. Processors that resize by the shorter side make the longer one huge."""
MAX_JPEG_SCANS = 64
"""Scans of one progressive JPEG; encoders write about ten."""
JPEG_SCAN_PIXELS_FACTOR = 20
"""All scans of a JPEG together may cover this many times ``image_pixels``."""
MAX_CHARACTERS_PER_TOKEN = 32
"""A text with more characters than this, per token of the longest prompt, is refused before it is tokenized."""
