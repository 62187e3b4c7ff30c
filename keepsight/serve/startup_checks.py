"""Does what a server offers run on its model? Found out before the port answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keepsight.analysis.inspect import grey_picture
from keepsight.api import attached
from keepsight.errors import InputError, KeepsightError
from keepsight.method import Method
from keepsight.registry import methods
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.prompts import ChatMessage, prepare_chat

QUESTION = "Describe this image."
SIDE = 336


class CannotServe(InputError):
    """A method that was to be offered, or the model itself, does not run."""


def check_models(model: Any, processor: Any, models: ModelRegistry) -> None:
    """Write two tokens under everything that is offered, the plain model included.

    Raises:
        CannotServe: with the name of the first that does not run, and why.
    """
    inputs = _inputs(model, processor)
    for name, recipes in {models.base: (), **models.served}.items():
        try:
            _try(model, inputs, recipes)
        except KeepsightError as error:
            raise CannotServe(f"{name} cannot be served: {error}") from error


def runnable_models(
    model: Any, processor: Any, base: str, calibration: str | None
) -> tuple[ModelRegistry, list[str]]:
    """Every method that runs on the model at its defaults, and of the others why not, a line for each."""
    inputs = _inputs(model, processor)
    runs, why_not = [], []
    for name in methods():
        try:
            _try(model, inputs, ModelRegistry.from_specs(base, [name], calibration).served[name])
            runs.append(name)
        except KeepsightError as error:
            why_not.append(str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}")
        except (
            Exception
        ) as error:  # whatever a foreign model raises is the answer to whether the method runs on it
            why_not.append(f"{name}: unexpected {type(error).__name__}; please report it")
    return ModelRegistry.from_specs(base, runs, calibration), why_not


def _inputs(model: Any, processor: Any) -> Any:
    inputs = prepare_chat(processor, [ChatMessage("user", (grey_picture(SIDE, SIDE), QUESTION))])
    return inputs.to(model.device, dtype=model.dtype)


def _try(model: Any, inputs: Any, recipes: Sequence[Method]) -> None:
    with attached(model, inputs, *recipes) as processors:
        model.generate(**inputs, logits_processor=processors, max_new_tokens=2, do_sample=False, num_beams=1)
