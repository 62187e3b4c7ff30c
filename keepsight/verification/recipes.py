"""The recipes that a verification runs: what a user asks for at other strengths, and its edits alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any

from keepsight.method import Method
from keepsight.parts import Edit, Part, Prelude
from keepsight.registry import as_recipes

if TYPE_CHECKING:
    from keepsight.target import Target

Recipes = tuple[Method, ...]
"""Methods that act together."""
Alternative = Method | str | Recipes
"""What a verification is asked for."""
SETTINGS_OF_PLACE = frozenset({"layers", "first_layer"})
"""Settings that say where a method acts, and stay what the user has chosen while its strength is raised."""


class EditsOf(Method):
    """The edits of some recipes and what prepares them, without contrasts: what a witness can follow pass by pass."""

    def __init__(self, recipes: Recipes) -> None:
        object.__setattr__(self, "_recipes", recipes)

    def off(self) -> Any:
        return self

    def parts(self, target: Target) -> Iterator[Part]:
        for recipe in self._recipes:  # type: ignore[attr-defined]
            for part in recipe.parts(target):
                if isinstance(part, (Edit, Prelude)):
                    yield part


def strengthened(recipes: Recipes) -> Recipes:
    """Recipes at the strength that their classes name as visible, at the places that they have.

    A part of a method that is switched off stays so: ``pai:alpha=0`` is guidance alone at any strength.
    """
    return tuple(_strong(one) for one in recipes)


def weakened(recipes: Recipes) -> Recipes:
    """Recipes at the strength that their classes name as negligible; what is switched off stays so."""
    return tuple(replace(one, **_still_on(one, type(one).negligible)) for one in recipes)


def _strong(one: Method) -> Method:
    settings = {k: v for k, v in type(one).visible.items() if k not in SETTINGS_OF_PLACE}
    strong = replace(one, **_still_on(one, settings))
    # With everything off there would be nothing to check
    return replace(one, **settings) if strong == strong.off() else strong


def _still_on(one: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those by which the user has switched a part of a recipe off.

    These have the value that ``off`` gives them, which is not their default.
    """
    defaults = {item.name: item.default for item in fields(one)}

    def switched_off(name: str) -> bool:
        if defaults[name] in (MISSING, getattr(one, name)):
            return False
        plain = replace(one, **{name: defaults[name]})
        return bool(getattr(plain.off(), name) == getattr(one, name))

    return {name: value for name, value in settings.items() if not switched_off(name)}


def together(one: Alternative) -> Recipes:
    """One alternative as the recipes that act together in it."""
    return as_recipes(one if isinstance(one, tuple) else (one,))


def edits_of(parts: Sequence[Part]) -> list[Edit]:
    """The edits among some parts."""
    return [part for part in parts if isinstance(part, Edit)]


def spec_of(recipes: Recipes) -> str:
    """The spec of methods that act together."""
    return "+".join(recipe.spec for recipe in recipes)
