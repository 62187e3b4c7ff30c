"""Sightline: fewer invented objects from vision-language models, without training.

Pass a processor to ``generate()``, or open a ``with`` block around unchanged code::

    from sightline import M3ID, mitigate

    model.generate(**inputs, logits_processor=[M3ID().processor(model, inputs)])
    with mitigate(model, M3ID()):
        model.generate(**inputs)

Importing this package changes nothing anywhere and does not load torch: names are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ConcurrentUse": "sightline.errors",
    "ConflictingMethods": "sightline.errors",
    "GroundingRecorder": "sightline.grounding.recorder",
    "InputError": "sightline.errors",
    "InvalidParameter": "sightline.errors",
    "M3ID": "sightline.decoding.m3id",
    "Method": "sightline.method",
    "NeedsCalibration": "sightline.errors",
    "NoImageTokens": "sightline.errors",
    "PAI": "sightline.attention_mods.pai",
    "ProcessorReused": "sightline.errors",
    "SLA": "sightline.steering.vista",
    "SightlineError": "sightline.errors",
    "Target": "sightline.target",
    "UnknownMethod": "sightline.errors",
    "UnknownParameter": "sightline.errors",
    "UnsupportedModel": "sightline.errors",
    "VAR": "sightline.attention_mods.var",
    "VCD": "sightline.decoding.vcd",
    "VHR": "sightline.attention_mods.vhr",
    "VSV": "sightline.steering.vista",
    "attached": "sightline.doors",
    "ground": "sightline.grounding.forced",
    "methods": "sightline.spec",
    "mitigate": "sightline.doors",
    "parse": "sightline.spec",
}

__all__ = [
    "ConcurrentUse",
    "ConflictingMethods",
    "GroundingRecorder",
    "InputError",
    "InvalidParameter",
    "M3ID",
    "Method",
    "NeedsCalibration",
    "NoImageTokens",
    "PAI",
    "ProcessorReused",
    "SLA",
    "SightlineError",
    "Target",
    "UnknownMethod",
    "UnknownParameter",
    "UnsupportedModel",
    "VAR",
    "VCD",
    "VHR",
    "VSV",
    "attached",
    "ground",
    "methods",
    "mitigate",
    "parse",
]

if TYPE_CHECKING:
    from sightline.attention_mods.pai import PAI
    from sightline.attention_mods.var import VAR
    from sightline.attention_mods.vhr import VHR
    from sightline.decoding.m3id import M3ID
    from sightline.decoding.vcd import VCD
    from sightline.doors import attached, mitigate
    from sightline.errors import (
        ConcurrentUse,
        ConflictingMethods,
        InputError,
        InvalidParameter,
        NeedsCalibration,
        NoImageTokens,
        ProcessorReused,
        SightlineError,
        UnknownMethod,
        UnknownParameter,
        UnsupportedModel,
    )
    from sightline.grounding.forced import ground
    from sightline.grounding.recorder import GroundingRecorder
    from sightline.method import Method
    from sightline.spec import methods, parse
    from sightline.steering.vista import SLA, VSV
    from sightline.target import Target


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
