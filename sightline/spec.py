"""Spec strings (``m3id:decay=0.05,gate=0.9``) and the list of all methods, which is the packages' ``__all__``."""

from __future__ import annotations

from typing import Any

from sightline.errors import InvalidParameter, UnknownMethod, UnknownParameter, did_you_mean
from sightline.method import Method, read_value, unknown_parameter


def methods() -> dict[str, type[Method]]:
    """Every method by its spec name, sorted. What a seam's package exports is what exists; there is no registry."""
    from sightline import attention_mods, decoding, steering

    packages = (attention_mods, decoding, steering)
    exported = (getattr(package, name) for package in packages for name in package.__all__)
    return {cls.name(): cls for cls in sorted(exported, key=lambda cls: cls.name())}


def parse(spec: str) -> Method:
    """The recipe that a spec string names.

    ``NAME`` or ``NAME:parameter=value,…``; ``none`` stands for None, tuples are joined by ``+``.

    >>> parse("m3id:decay=0.05,gate=0.9")
    M3ID(decay=0.05, gate=0.9, cutoff=None, first=0, cap=100.0, also_drop=())

    Raises:
        UnknownMethod, UnknownParameter: with the nearest names.
        InvalidParameter: a value is malformed or out of its range, or a parameter is given twice.
    """
    name, _, rest = spec.strip().partition(":")
    known = methods()
    method = known.get(name.strip().lower())
    if method is None:
        raise UnknownMethod(f"no method {name!r}: {did_you_mean(name, known)}")
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InvalidParameter(f"{spec!r}: write {part!r} as parameter=value")
        if key not in {item.name for item in method.parameters()}:
            raise UnknownParameter(unknown_parameter(method, key))
        if key in values:
            raise InvalidParameter(f"{spec!r}: {key} is given twice")
        values[key] = read_value(method, key, text)
    return method(**values)
