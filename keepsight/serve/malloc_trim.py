"""Returns the memory of large images to the operating system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

LARGE_IMAGE_PIXELS = 4_000_000
"""From this number of pixels in a conversation on, returning the memory is worth the time that it takes."""


def trim_memory() -> None:
    """Return freed memory to the operating system. It does nothing on systems other than Linux with glibc.

    glibc keeps freed memory for later use: 800 MiB after three images of 36 megapixels at the same time.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            # None stands for the libraries that this process has loaded already, the C library among them
            ctypes.CDLL(None).malloc_trim(0)
