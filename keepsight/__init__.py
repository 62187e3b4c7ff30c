"""Keepsight: fewer invented objects from vision-language models, without training.

Pass a processor to ``generate()``, or open a ``with`` block around unchanged code::

    from keepsight import M3ID, mitigate

    model.generate(**inputs, logits_processor=[M3ID().processor(model, inputs)])
    with mitigate(model, M3ID()):
        model.generate(**inputs)

Importing this package changes nothing anywhere and does not load torch: names are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ConcurrentUse": "keepsight.errors",
    "ConflictingMethods": "keepsight.errors",
    "GroundingRecorder": "keepsight.grounding.recorder",
    "InputError": "keepsight.errors",
    "InvalidParameter": "keepsight.errors",
    "KeepsightError": "keepsight.errors",
    "Method": "keepsight.method",
    "NeedsCalibration": "keepsight.errors",
    "NoImageTokens": "keepsight.errors",
    "OperatorOnly": "keepsight.errors",
    "ProcessorReused": "keepsight.errors",
    "Target": "keepsight.target",
    "UnknownMethod": "keepsight.errors",
    "UnknownParameter": "keepsight.errors",
    "UnsupportedModel": "keepsight.errors",
    "attached": "keepsight.api",
    "ground": "keepsight.grounding.teacher_forcing",
    "methods": "keepsight.registry",
    "mitigate": "keepsight.api",
    "parameter": "keepsight.method",
    "parse": "keepsight.registry",
    "parse_all": "keepsight.registry",
}
"""Where the public names stand that are no methods. The classes of methods are looked up in the registry."""


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "__all__":
        value = sorted([*_HOME, *_method_classes()])
    elif name.startswith("_") or (value := _method_classes().get(name)) is None:
        raise AttributeError(f"module 'keepsight' has no attribute {name!r}")
    globals()[name] = value
    return value


def _method_classes() -> dict[str, Any]:
    from keepsight.registry import methods

    return {method.__name__: method for method in methods().values()}


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_method_classes()})
