"""Does what a server offers run on its model? Found out before the port opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.doors import attached
from sightline.errors import SightlineError
from sightline.inspection import grey_picture, try_methods
from sightline.method import Method
from sightline.serve.menu import Menu
from sightline.serve.prompts import Turn, prepare_chat

QUESTION = "Describe this image."
SIDE = 336


def trial_inputs(model: Any, processor: Any) -> Any:
    """A question about a grey picture, on the model's device. Raises as ``prompts.prepare_chat``."""
    inputs = prepare_chat(processor, [Turn("user", (grey_picture(SIDE, SIDE), QUESTION))])
    return inputs.to(model.device, dtype=model.dtype)


def default_methods(model: Any, processor: Any) -> tuple[list[str], list[str]]:
    """The methods that run on a model at their defaults, and why the others do not, a line for each."""
    trials = try_methods(model, trial_inputs(model, processor))
    runs = [trial.method for trial in trials if trial.runs]
    return runs, [f"{trial.method}: {trial.why_not}" for trial in trials if not trial.runs]


def check_menu(model: Any, processor: Any, menu: Menu) -> None:
    """Write two tokens under everything that is offered, the plain model included.

    Raises:
        SightlineError: as the first of them that does not run says it, its name before it.
    """
    inputs = trial_inputs(model, processor)
    offers: dict[str, Sequence[Method]] = {menu.base: (), **menu.offers}
    for name, recipes in offers.items():
        try:
            with attached(model, inputs, *recipes) as processors:
                model.generate(
                    **inputs, logits_processor=processors, max_new_tokens=2, do_sample=False, num_beams=1
                )
        except SightlineError as error:
            raise type(error)(f"{name} does not run on this model: {error}") from error
