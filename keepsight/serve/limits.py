"""How much a server takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from keepsight.errors import InvalidParameter


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one request and on all of them together; each is 1 or more.

    Args:
        request_bytes: of a request's body.
        image_bytes: of one picture's file, decoded from base64.
        image_pixels: width times height of one picture; read from the file's head, before anything is unpacked.
        images: pictures in one conversation.
        messages: messages in one conversation.
        prompt_tokens: of one conversation, pictures included; None is what the model has positions for.
        tokens: the most that ``max_tokens`` may ask for.
        choices: the most that ``n`` may ask for.
        batch: answers written together; 1 is one after another.
        queue: answers that may wait; whoever comes then gets a 429.

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


TOGETHER = 2
"""All pictures of a conversation may have so many times the pixels that one may have."""
SIDES = 100
"""A picture's longer side over its shorter one may be so much: processors resize by the shorter one."""
SCANS = 64
"""Of one JPEG; encoders write about ten."""
SCANNED = 20
"""All scans of a JPEG together may have so many times the pixels that one picture may have."""
CHARACTERS = 32
"""Per token of the longest prompt: a text beyond that is refused before anyone tokenizes it."""
