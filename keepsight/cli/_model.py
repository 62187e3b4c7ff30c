"""Loads a model for a command, without messages between the command's own lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keepsight.errors import InputError


def device_map(device: str) -> str | None:
    """The ``device_map`` of transformers for ``--device``. None leaves a checkpoint on the CPU, without a hook for every
    module."""
    return None if device == "cpu" else device


def quiet(model: str) -> None:
    """Keep transformers from writing between a command's lines, and give the demo model one thread."""
    from keepsight.inference.loading import DEMO, quiet_transformers, use_one_thread

    quiet_transformers(bars=model != DEMO)
    if model == DEMO:
        # The demo model's tensors are so small that a second thread makes it slower.
        use_one_thread()


def open_model(model: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A checkpoint and its processor, for the values of MODEL, ``--device`` and ``--dtype``.

    Raises:
        ModelNotLoaded, UnsupportedModel, WeightsMissing: as ``load``.
    """
    from keepsight.inference.loading import load

    quiet(model)
    return load(model, dtype=dtype, device_map=device_map(device))


def check_model_first(model: str, command: str) -> None:
    """Refuse a picture that stands where the model belongs.

    Args:
        model: the value of MODEL.
        command: the command's name, for the message.

    Raises:
        InputError: MODEL is a file.
    """
    if Path(model).is_file():
        raise InputError(
            f"{model} is a file and no model: name the model first, keepsight {command} demo {model}"
        )
