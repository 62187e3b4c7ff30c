"""What a server offers: a model name for the plain model, and one for each method or combination of methods."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from keepsight.errors import ConflictingMethods, InvalidParameter, UnknownMethod, did_you_mean
from keepsight.method import Method
from keepsight.registry import methods, parse
from keepsight.serve.errors import RequestRefused, UnknownModelName


def parse_combination(text: str) -> tuple[Method, ...]:
    """The methods of ``var+vista`` or ``m3id:decay=0.05+vhr``, in their order.

    A plus before anything but a method's name belongs to the value before it (``layers=3+4``).

    Raises:
        UnknownMethod, UnknownParameter, InvalidParameter: as ``spec.parse``.
        ConflictingMethods: a method is named twice.
    """
    names = "|".join(methods())
    if not text.strip():
        raise UnknownMethod("an empty method: name one, such as m3id")
    # A letter after a plus begins a method, known or not: values that go on after one are numbers
    pieces = re.split(rf"\+(?=\s*(?:(?:{names})\b|[A-Za-z_]+(?:[:+]|$)))", text, flags=re.IGNORECASE)
    return compatible(parse(piece) for piece in pieces)


def compatible(recipes: Iterable[Method]) -> tuple[Method, ...]:
    """The same, if no method is among them twice. Raises ``ConflictingMethods``."""
    found = tuple(recipes)
    names = [recipe.name() for recipe in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConflictingMethods(f"{twice} is named twice: its strength is a parameter, name it once")
    return found


@dataclass(frozen=True)
class Menu:
    """Model names and the methods they stand for.

    Args:
        base: the name of the plain model.
        offers: methods by what follows ``base:`` in a name, in the order of the list.
        calibration: the file that recipes get which read one and name none.
    """

    base: str
    offers: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    calibration: str | None = None

    @classmethod
    def of(cls, base: str, specs: Sequence[str], calibration: str | None = None) -> Menu:
        """From what a user wrote, each spec a method or a combination.

        Raises:
            UnknownMethod, UnknownParameter, InvalidParameter, ConflictingMethods.
            InvalidParameter: a spec is given twice.
        """
        offers: dict[str, tuple[Method, ...]] = {}
        for spec in specs:
            name = "".join(spec.split())
            if name in offers:
                raise InvalidParameter(f"the method {name} is given twice: give it once")
            offers[name] = _calibrated(parse_combination(spec), calibration)
        return cls(base, offers, calibration)

    @property
    def names(self) -> list[str]:
        """All model names, the plain model first."""
        return [self.base, *(f"{self.base}:{name}" for name in self.offers)]

    def methods(self, name: str) -> tuple[Method, ...]:
        """The methods that a model name stands for. Raises ``UnknownModelName`` with the nearest."""
        if name == self.base:
            return ()
        found = self.offers.get(name.removeprefix(f"{self.base}:")) if ":" in name else None
        if found is None or not name.startswith(f"{self.base}:"):
            raise UnknownModelName(
                f"there is no model {name[:200]!r}: {did_you_mean(name[:200], self.names)}", param="model"
            )
        return found

    def specs(self, name: str) -> list[str]:
        """The same as specs, which clients may see: without the file that the server was started with."""
        return [_uncalibrated(recipe, self.calibration).spec for recipe in self.methods(name)]

    def read(self, specs: Sequence[str]) -> tuple[Method, ...]:
        """The methods that a request names itself.

        Raises:
            RequestRefused: a setting names a file that the server was not started with: requests reach no files.
            UnknownMethod, UnknownParameter, InvalidParameter, ConflictingMethods.
        """
        recipes = compatible(recipe for spec in specs for recipe in parse_combination(spec))
        known = {recipe for offered in self.offers.values() for recipe in offered}
        for recipe in recipes:
            if recipe not in known and (name := _names_file(recipe)):
                raise RequestRefused(
                    f"{recipe.name()}: {name} names a file, and requests may not: start the server with it",
                    param="keepsight.methods",
                )
        return _calibrated(recipes, self.calibration)


def _names_file(recipe: Method) -> str | None:
    """The parameter of a recipe that is a free text, which means a file, and is set."""
    for item in recipe.parameters():
        free = str(item.type).startswith("str") and not item.metadata["choices"]
        if free and getattr(recipe, item.name) is not None:
            return item.name
    return None


def _calibrated(recipes: tuple[Method, ...], calibration: str | None) -> tuple[Method, ...]:
    if calibration is None:
        return recipes
    given = []
    for recipe in recipes:
        settings = asdict(recipe)
        if "calibration" in settings and settings["calibration"] is None:
            recipe = type(recipe)(**settings | {"calibration": calibration})
        given.append(recipe)
    return tuple(given)


def _uncalibrated(recipe: Method, calibration: str | None) -> Method:
    settings = asdict(recipe)
    if calibration is None or settings.get("calibration") != calibration:
        return recipe
    return type(recipe)(**settings | {"calibration": None})
