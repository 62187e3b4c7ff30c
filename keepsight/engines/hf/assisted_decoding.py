"""Tells draft passes of assisted decoding from the passes of the model itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def drafting() -> bool:
    """Whether the caller is a draft model or another source of candidate tokens inside assisted generation."""
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "get_candidates" and code.co_filename.endswith("candidate_generator.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
