"""The engine for models that vLLM runs: contrastive methods as requests that travel together.

vLLM finds two classes here by name, ``keepsight.engines.vllm.PairScheduler`` and ``keepsight.engines.vllm:Contrast``. They
are resolved when they are asked for, so that importing this package does not import vLLM.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Contrast": "keepsight.engines.vllm.processor",
    "PairScheduler": "keepsight.engines.vllm.scheduler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
