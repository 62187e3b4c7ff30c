"""The bounds on what a server accepts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from keepsight.errors import InvalidParameter


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one request, and on all requests together. Each is 1 or more.

    Args:
        request_bytes: bytes of the body of a request; default 20 MiB.
        image_bytes: bytes of an image's file, after base64 was decoded; default 10 MiB.
        image_pixels: width times height of one image; default 50 million. They are read from the file's header, before
            anything is unpacked.
        images: the number of images in one conversation; default 16.
        messages: the number of messages in one conversation; default 1000.
        prompt_tokens: tokens of one conversation, those of the images included. None, the default, is what the model has
            positions for.
        tokens: the largest ``max_tokens`` of a request; default 4096.
        choices: the largest ``n`` of a request; default 8.
        batch: how many answers are generated together; default 8. 1 generates one after another.
        queue: how many answers may wait; default 32. Further requests are refused with status 429.

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
            # Written in this way, the comparison is also false for NaN
            if value is not None and not (1 <= value < math.inf):
                raise InvalidParameter(
                    f"the limit {item.name.replace('_', ' ')}={value} must be a whole number, 1 or more"
                )


CONVERSATION_PIXELS_FACTOR = 2
"""All images of a conversation together may have this many times ``image_pixels``."""
MAX_ASPECT_RATIO = 100
"""The largest ratio of an image's longer side to its shorter side.

Processors that resize by the shorter side would make the longer one huge.
"""
MAX_JPEG_SCANS = 64
"""The largest number of scans of one progressive JPEG. Encoders write about ten."""
JPEG_SCAN_PIXELS_FACTOR = 20
"""All scans of a JPEG together may cover this many times ``image_pixels``."""
MAX_CHARACTERS_PER_TOKEN = 32
"""Texts with more characters than this for each token of the longest prompt are refused before they are tokenized."""
