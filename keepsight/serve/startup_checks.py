"""Checks, before the server answers any request, that everything it offers runs on its model."""

from __future__ import annotations

from typing import Any

from keepsight.analysis.inspect import grey_picture
from keepsight.errors import InputError, KeepsightError
from keepsight.inference.generation import dry_run
from keepsight.registry import methods
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.prompts import ChatMessage, prepare_chat

QUESTION = "Describe this image."
"""The question of the trial prompt."""
SIDE = 336
"""Width and height of the trial prompt's grey image, in pixels."""


class CannotServe(InputError):
    """A method that the operator wants to offer, or the model itself, does not run."""


def check_models(model: Any, processor: Any, models: ModelRegistry) -> None:
    """Generate two tokens under everything that is offered, the plain model included.

    Raises:
        CannotServe: with the name of the first model or method that does not run, and the reason.
    """
    inputs = _inputs(model, processor)
    for name, recipes in {models.base: (), **models.served}.items():
        try:
            dry_run(model, inputs, recipes)
        except KeepsightError as error:
            raise CannotServe(f"{name} cannot be served: {error}") from error


def runnable_models(
    model: Any, processor: Any, base: str, calibration: str | None
) -> tuple[ModelRegistry, list[str]]:
    """All methods that run on the model with their defaults, and for each of the others a line that says why not.

    Every method generates two tokens.

    Args:
        model: the model.
        processor: the model's processor.
        base: the name of the plain model.
        calibration: the path of the file that is given to methods that read one, or None.
    """
    inputs = _inputs(model, processor)
    runs, why_not = [], []
    for name in methods():
        try:
            dry_run(model, inputs, ModelRegistry.from_specs(base, [name], calibration).served[name])
            runs.append(name)
        except KeepsightError as error:
            # Many of our errors begin with the name of the method already
            why_not.append(str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}")
        except Exception as error:
            # Whatever a model of an unknown family raises is the answer to whether the method runs on it
            why_not.append(f"{name}: unexpected {type(error).__name__}; please report it")
    return ModelRegistry.from_specs(base, runs, calibration), why_not


def _inputs(model: Any, processor: Any) -> Any:
    """The model inputs of the trial prompt, on the model's device."""
    inputs = prepare_chat(processor, [ChatMessage("user", (grey_picture(SIDE, SIDE), QUESTION))])
    return inputs.to(model.device, dtype=model.dtype)
