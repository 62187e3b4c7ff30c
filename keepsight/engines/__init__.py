"""What can put the parts of methods in place. ``keepsight.engines.hf`` is the engine for models of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepsight.engines.base import Engine


def default() -> Engine:
    """The engine of a method that is told no other: that for models of transformers."""
    from keepsight.engines.hf.engine import ENGINE

    return ENGINE
