"""The methods that exist, and the spec strings that name them: ``m3id:decay=0.05,gate=0.9+vhr``.

Nothing is listed by hand. A class is a registered method if it is a concrete ``Method`` that stands in a module of
``keepsight.decoding``, ``keepsight.attention_mods`` or ``keepsight.steering``, or if an installed distribution declares
it in the entry-point group ``keepsight.methods``.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import Any

from keepsight.errors import (
    ConflictingMethods,
    InputError,
    InvalidParameter,
    OperatorOnly,
    UnknownMethod,
    UnknownParameter,
    did_you_mean,
)
from keepsight.method import Method, read_value, unknown_parameter

FOLDERS = ("keepsight.decoding", "keepsight.attention_mods", "keepsight.steering")
"""Where the package's own methods stand: one file per paper."""
ENTRY_POINTS = "keepsight.methods"
"""The group in which other distributions declare methods of their own."""


@functools.cache
def methods() -> dict[str, type[Method]]:
    """Every registered method by the name that it has in spec strings, sorted.

    Raises:
        ConflictingMethods: two methods have one name.
    """
    found: dict[str, type[Method]] = {}
    for method in (*_own_methods(), *_declared_methods()):
        other = found.setdefault(method.name(), method)
        if other is not method:
            raise ConflictingMethods(
                f"two methods are called {method.name()!r}: {other.__module__}.{other.__qualname__} and"
                f" {method.__module__}.{method.__qualname__}; rename one of the classes"
            )
    return dict(sorted(found.items()))


def _own_methods() -> Iterator[type[Method]]:
    for folder in FOLDERS:
        for module in pkgutil.iter_modules(import_module(folder).__path__, folder + "."):
            yield from _methods_in(import_module(module.name))


def _methods_in(module: Any) -> Iterator[type[Method]]:
    for value in vars(module).values():
        # A method that a module merely imports belongs to the module that defines it
        if _is_method(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_"):
            yield value


def _declared_methods() -> Iterator[type[Method]]:
    for entry in entry_points(group=ENTRY_POINTS):
        # A distribution that is broken must not take the others away, and must not go unnoticed either
        try:
            method = entry.load()
        except Exception as error:
            warnings.warn(f"{_where(entry)} cannot be imported and is left out: {error}", stacklevel=3)
            continue
        if _is_method(method):
            yield method
        else:
            warnings.warn(f"{_where(entry)} is not a concrete keepsight.Method and is left out", stacklevel=3)


def _where(entry: EntryPoint) -> str:
    owner = f" of {entry.dist.name}" if entry.dist is not None else ""
    return f"the entry point {entry.name!r} ({entry.value}){owner} in the group {ENTRY_POINTS!r}"


def _is_method(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)


def find(name: str, *, trusted: bool = True) -> type[Method]:
    """The method class that a name stands for.

    Args:
        name: a registered name such as ``m3id``, in any case, or ``package.module:Class``.
        trusted: whether the name comes from whoever operates the program. Importing a module runs its code, so a
            request to a server may name registered methods only.

    Raises:
        UnknownMethod: with the nearest names.
        OperatorOnly: a class that is not registered, and ``trusted`` is False.
    """
    known = methods()
    if (method := known.get(name.lower())) is not None:
        return method
    module_name, colon, class_name = name.partition(":")
    if not colon and "." not in name:
        raise UnknownMethod(_unknown(name, known))
    for method in known.values():
        if (method.__module__, method.__qualname__) == (module_name, class_name):
            return method
    if not trusted:
        raise OperatorOnly(f"{name!r} is not a registered method: a request may name {', '.join(known)}")
    if not class_name:
        raise UnknownMethod(f"no method {name!r}: a class of your own is named package.module:Class")
    try:
        value: Any = functools.reduce(getattr, class_name.split("."), import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownMethod(f"no method {name!r}: {error}") from error
    if not _is_method(value):
        raise UnknownMethod(f"{name!r} is not a concrete subclass of keepsight.Method")
    found: type[Method] = value
    return found


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    for joiner in (",", " ", ";", "&"):
        pieces = [piece.strip() for piece in name.split(joiner) if piece.strip()]
        if len(pieces) > 1 and all(piece.partition(":")[0].lower() in known for piece in pieces):
            return f"no method {name!r}: methods are joined with +, write {'+'.join(pieces)!r}"
    return f"no method {name!r}: {did_you_mean(name, known)}"


def parse(spec: str, *, trusted: bool = True) -> Method:
    """The recipe that a spec string names.

    ``NAME`` or ``NAME:parameter=value,…``. ``none`` stands for None, the numbers of a tuple are joined with ``/``, and
    exponents are written without a plus (``1e5``). ``NAME`` may be ``package.module:Class`` for a class of your own.

    >>> parse("m3id:decay=0.05,gate=0.9")
    M3ID(decay=0.05, gate=0.9, cutoff=None, first=0, cap=100.0, also_drop=())

    Args:
        trusted: whether the spec comes from whoever operates the program; see ``find``. Parameters that name a file
            are refused without it.

    Raises:
        UnknownMethod, UnknownParameter: with the nearest names.
        InvalidParameter: a value is malformed or out of its range, or a parameter is given twice.
        ConflictingMethods: several methods; ``parse_all`` reads those.
        OperatorOnly: the spec names code or a file, and ``trusted`` is False.
    """
    if "+" in spec:
        found = parse_all(spec, trusted=trusted)
        if len(found) != 1:
            raise ConflictingMethods(f"{spec!r} names {len(found)} methods where one is wanted")
        return found[0]
    name, values = _split(spec.strip())
    method = find(name, trusted=trusted)
    items = {item.name: item for item in method.parameters()}
    chosen: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in values.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InvalidParameter(f"{spec!r}: {_not_a_setting(part, spec, method)}")
        if key not in items:
            raise UnknownParameter(unknown_parameter(method, key))
        if key in chosen:
            raise InvalidParameter(f"{spec!r}: {key} is given twice")
        if items[key].metadata["operator_only"] and not trusted:
            raise OperatorOnly(f"{method.name()}: {key} names a file, which a request may not: leave it out")
        chosen[key] = read_value(method, key, text)
    return method(**chosen)


def _split(spec: str) -> tuple[str, str]:
    """The name and the settings of one spec: the class of a third party ends at the second colon, a name at the first."""
    name, _, rest = (part.strip() for part in spec.partition(":"))
    class_name, _, settings = (part.strip() for part in rest.partition(":"))
    if class_name and ("." in name or (class_name.isidentifier() and class_name[0].isupper())):
        return f"{name}:{class_name}", settings
    return name, rest


def _not_a_setting(part: str, spec: str, method: type[Method]) -> str:
    if part.partition(":")[0].lower() in methods():
        return f"methods are joined with +, write {spec.replace(',' + part, '+' + part).replace(', ' + part, '+' + part)!r}"
    names = [item.name for item in method.parameters()]
    return f"write {part!r} as parameter=value" + (f", such as {names[0]}={part}" if names else "")


def parse_all(spec: str, *, trusted: bool = True) -> tuple[Method, ...]:
    """The recipes of a spec string in which methods that act together are joined with ``+``: ``m3id:decay=0.05+vhr``.

    Args:
        trusted: see ``parse``.

    Raises:
        InvalidParameter: a ``+`` stands where no method follows, as in a tuple or an exponent.
        ConflictingMethods: a method is given twice.
        UnknownMethod, UnknownParameter, OperatorOnly: as ``parse``.
    """
    pieces = spec.split("+")
    for before, piece in pairwise(pieces):
        _check_joined(spec, before.strip(), piece.strip())
    return compatible(parse(piece, trusted=trusted) for piece in pieces)


def _check_joined(spec: str, before: str, piece: str) -> None:
    """Raises ``InvalidParameter`` where ``+`` joins something else than methods, and shows what was meant."""
    number = piece.partition(",")[0]
    if not before or not piece:
        raise InvalidParameter(f"{spec!r}: + joins two methods, such as m3id+vhr")
    if number.isdigit():
        mantissa = before.rpartition("=")[2]
        if mantissa[-1:] in ("e", "E"):
            raise InvalidParameter(
                f"{spec!r}: + joins methods; write the exponent without it: {mantissa}{number}"
            )
        raise InvalidParameter(
            f"{spec!r}: + joins methods; the numbers of a tuple are joined with /: {mantissa}/{number}"
        )


def compatible(recipes: Iterable[Method]) -> tuple[Method, ...]:
    """The recipes, if they can act together.

    Raises:
        ConflictingMethods: a method is given twice.
        InputError: something that is no recipe.
    """
    found = tuple(recipes)
    for recipe in found:
        if not isinstance(recipe, Method):
            raise InputError(_no_recipe(recipe))
    names = [recipe.spec_name() for recipe in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConflictingMethods(f"{twice} is given twice: its strength is a parameter, give it once")
    return found


def as_recipes(given: Iterable[Method | str]) -> tuple[Method, ...]:
    """Recipes from recipes and spec strings in any mixture; a string may join several with ``+``.

    Raises:
        as ``parse_all`` and ``compatible``.
    """
    found: list[Any] = []
    for one in given:
        found.extend(parse_all(one) if isinstance(one, str) else [one])
    return compatible(found)


def _no_recipe(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Method):
        return f"{value.__name__} is the class of a method: pass a recipe, {value.__name__}()"
    return f"a method such as M3ID() or 'm3id' is needed here, not a {type(value).__name__}"
