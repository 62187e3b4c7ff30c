"""The model names that a server offers: one for the plain model, and one for each method or combination of methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.method import Method
from keepsight.registry import compatible, parse_all
from keepsight.serve.errors import UnknownModelName


@dataclass(frozen=True)
class ModelRegistry:
    """Model names and the methods that they stand for.

    The operator, who starts the server, may serve any class and name any file. A request may only pick what the operator
    serves, by its exact name, or registered methods with plain values. Therefore a request's text is compared with the
    served names before anything of it is parsed. If none of them matches, it is parsed as untrusted.

    Args:
        base: the name of the plain model.
        served: the methods by what follows ``base:`` in a model name, in the order of the list of models.
        calibration: the calibration file of methods that read one and were not given another.
    """

    base: str
    served: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    calibration: str | None = None

    @classmethod
    def from_specs(cls, base: str, specs: Sequence[str], calibration: str | None = None) -> ModelRegistry:
        """The registry for the specs that the operator gave, such as ``["m3id", "vhr+m3id:decay=0.05"]``.

        Args:
            base: the name of the plain model.
            specs: one per model name; ``+`` joins methods that are applied together. Spaces are dropped.
            calibration: the path of a calibration file.

        Raises:
            UnknownMethod, UnknownParameter, ConflictingMethods: as ``keepsight.registry.parse_all``.
            InvalidParameter: as ``parse_all``, or a spec is given twice.
        """
        served: dict[str, tuple[Method, ...]] = {}
        for spec in specs:
            # The operator's own text becomes the name, and not the spec in its normal form: clients write what the operator
            # wrote
            name = "".join(spec.split())
            if name in served:
                raise InvalidParameter(f"the method {name} is given twice: give it once")
            served[name] = _with_calibration(parse_all(spec), calibration)
        return cls(base, served, calibration)

    @property
    def names(self) -> list[str]:
        """All model names, the plain model first."""
        return [self.base, *(f"{self.base}:{name}" for name in self.served)]

    def methods(self, name: str) -> tuple[Method, ...]:
        """The methods that a model name stands for. The name is compared as a string and never parsed.

        Raises:
            UnknownModelName: the server does not offer this name; the message shows the nearest ones.
        """
        if name == self.base:
            return ()
        base_and_colon = f"{self.base}:"
        found = self.served.get(name[len(base_and_colon) :]) if name.startswith(base_and_colon) else None
        if found is None:
            shown = name[:200]  # comparing a long name with all others for the nearest ones takes long
            raise UnknownModelName(
                f"there is no model {shown!r}: {did_you_mean(shown, self.names)}", param="model"
            )
        return found

    def specs(self, name: str) -> list[str]:
        """The specs of a model name's methods as clients may see them: without the path of the calibration file.

        Raises:
            UnknownModelName: the server does not offer this name.
        """
        return [self._without_calibration(recipe).spec for recipe in self.methods(name)]

    def parse_untrusted(self, specs: Sequence[str]) -> tuple[Method, ...]:
        """The methods that a request names itself.

        Args:
            specs: what the operator serves, by the same text, or registered methods with plain values.

        Raises:
            OperatorOnly: a spec names a class that is not registered, a file or a model.
            UnknownMethod, UnknownParameter, InvalidParameter, ConflictingMethods: as ``parse_all``.
        """
        recipes: list[Method] = []
        for spec in specs:
            # A served spec may name a class or a file. Its methods were made when the server started, and are only looked up
            if (known := self.served.get(spec)) is not None:
                recipes += known
            else:
                recipes += _with_calibration(parse_all(spec, trusted=False), self.calibration)
        return compatible(recipes)  # each entry is valid alone, and two entries may still conflict

    def _without_calibration(self, recipe: Method) -> Method:
        """The same recipe without the server's calibration file. A file that the operator wrote into the spec stays."""
        if self.calibration is None or getattr(recipe, "calibration", None) != self.calibration:
            return recipe
        return replace(recipe, calibration=None)  # type: ignore[call-arg]


def _with_calibration(recipes: Iterable[Method], calibration: str | None) -> tuple[Method, ...]:
    """The same recipes, with ``calibration`` for those that read such a file and were not given one."""
    if calibration is None:
        return tuple(recipes)
    return tuple(
        # Methods without such a field must be left alone: the default of getattr() keeps them from being replaced
        replace(recipe, calibration=calibration)  # type: ignore[call-arg]
        if getattr(recipe, "calibration", calibration) is None
        else recipe
        for recipe in recipes
    )
