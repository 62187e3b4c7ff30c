"""Reads ``--method`` alike in every command: it is repeated for alternatives, and ``+`` joins methods that act together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from keepsight.errors import InputError, InvalidParameter

if TYPE_CHECKING:
    from keepsight.method import Method

PLAIN = "none"
"""The value of ``--method`` that stands for the plain model."""


def read_alternatives(specs: Sequence[str] | None, *, plain_first: bool = False) -> list[tuple[Method, ...]]:
    """The alternatives that a command compares, each as the methods that act together in it; the plain model has none.

    Args:
        specs: the values of ``--method``; ``none`` is the plain model.
        plain_first: whether the plain model always is the first alternative. If not, it is the only one where no
            method is given.

    Raises:
        UnknownMethod, UnknownParameter, ConflictingMethods: as ``parse_all``.
        InvalidParameter: a parameter is out of its range, methods are joined with something else than ``+``, or an
            alternative is given twice.
    """
    found: list[tuple[Method, ...]] = [()] if plain_first or not specs else []
    for spec in specs or ():
        recipes = read_methods(spec)
        if plain_first and not recipes:
            raise InvalidParameter(f"--method {PLAIN}: the plain model is always compared with, leave it out")
        if recipes in found:
            raise InvalidParameter(f"--method {spec} is given twice: give every alternative once")
        found.append(recipes)
    return found


def read_methods(spec: str) -> tuple[Method, ...]:
    """The methods that one value of ``--method`` joins with ``+``; none for ``none``. Raises as ``read_alternatives``."""
    from keepsight.experiments.decoding_config import check_joiner
    from keepsight.registry import parse_all

    if spec.strip() == PLAIN:
        return ()
    check_joiner(spec)
    return parse_all(spec)


def only_one(specs: Sequence[str] | None, command: str) -> str | None:
    """The value of ``--method`` for a command that takes it once; None if it was not given.

    Args:
        specs: the values of ``--method``.
        command: the command's name, for the message.

    Raises:
        InvalidParameter: it is given several times.
    """
    if not specs:
        return None
    # A plain option would keep the last of several values without a word. As a list, all of them arrive here.
    if len(specs) > 1:
        raise InvalidParameter(
            f"keepsight {command} takes --method once: methods that act together are joined with +,"
            f" --method {'+'.join(specs)}"
        )
    return specs[0]


def one_recorded(specs: Sequence[str] | None, command: str) -> str | None:
    """The value of ``--method`` for a command that scores what was recorded under one method; None if it was not given.

    Args:
        specs: the values of ``--method``.
        command: the command's name, for the message.

    Raises:
        InvalidParameter: it is given several times.
    """
    if specs and len(specs) > 1:
        raise InvalidParameter(
            f"keepsight {command} scores one recorded method at a time: give --method once, such as --method"
            f" {specs[0]}, or compare several with keepsight compare"
        )
    return specs[0] if specs else None


def joined(recipes: Sequence[Method]) -> str:
    """The methods as one spec; empty for the plain model."""
    return "+".join(recipe.spec for recipe in recipes)


def label(recipes: Sequence[Method]) -> str:
    """The methods as people read them: their spec, or ``plain``."""
    return joined(recipes) or "plain"


def with_calibration(alternatives: Sequence[tuple[Method, ...]], path: Path) -> list[tuple[Method, ...]]:
    """The alternatives, in which the methods that read a calibration and name none are given this one.

    Args:
        alternatives: the alternatives.
        path: the calibration file.

    Raises:
        InputError: none of the methods reads a calibration, or the file is none.
    """
    from keepsight.calibration.file import Calibration

    # The methods read the file when they are put in place, which is after the model was loaded. Reading it here refuses a
    # wrong file at once.
    Calibration.load(path)
    if not any(reads_calibration(recipe) for recipes in alternatives for recipe in recipes):
        chosen = ", ".join(recipe.name() for recipes in alternatives for recipe in recipes) or "none"
        raise InputError(
            f"--calibration has no effect on the chosen methods ({chosen}): leave it out, or add --method var"
        )
    return [tuple(_calibrated(recipe, path) for recipe in recipes) for recipes in alternatives]


def reads_calibration(recipe: Method) -> bool:
    """Whether a method has a parameter for a calibration file."""
    return any(item.name == "calibration" for item in recipe.parameters())


def _calibrated(recipe: Method, path: Path) -> Method:
    """The method with this calibration file, unless it reads none or names one itself."""
    if not reads_calibration(recipe):
        return recipe
    settings = asdict(recipe)
    return type(recipe)(**settings | {"calibration": settings["calibration"] or str(path)})
