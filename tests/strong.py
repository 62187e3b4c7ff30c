"""Each method at a strength that changes tokens even on random weights: a test in which nothing happens proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from families import BREAK, END

from keepsight import Method, methods


def strong(name: str) -> Method:
    """A registered method at the settings that it names as ``visible``."""
    cls = methods()[name]
    assert cls.visible, f"{cls.__name__} names no `visible` settings under which it changes tokens"
    recipe: Any = cls(**cls.visible)
    if any(item.name == "also_drop" for item in cls.parameters()):
        # Mistral 3 lays row separators between the pieces of a picture that only its processor knows
        recipe = replace(recipe, also_drop=(BREAK, END))
    return recipe  # type: ignore[no-any-return]


STRONG: dict[str, Any] = {name: strong(name) for name in methods()}
