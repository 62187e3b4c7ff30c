"""Starts vLLM's own OpenAI server with methods in place: which flags and which environment it takes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from keepsight.engines.vllm.model_names import BASE
from keepsight.engines.vllm.placing import SERVED
from keepsight.engines.vllm.seams import RUNNER
from keepsight.errors import InputError
from keepsight.vllm import PROCESSOR, SCHEDULER

MIDDLEWARE = "keepsight.engines.vllm.model_names.ModelNames"
"""What vLLM's ``--middleware`` takes so that methods are model names."""
NORMALISE = "--no-mm-device-do-normalize"
"""Some models' pictures would else be normalised inside the model, where VCD cannot add its noise."""
MODULE = "vllm.entrypoints.openai.api_server"
"""The module that is vLLM's server; the command ``vllm serve`` of its CPU build does not start."""
OURS = (
    "--model",
    "--served-model-name",
    "--scheduler-cls",
    "--logits-processors",
    "--host",
    "--port",
    "--api-key",
    "--dtype",
)
"""Flags of vLLM that ``keepsight serve`` spells itself."""


def command(
    model: str,
    specs: Sequence[str],
    more: Sequence[str],
    *,
    name: str,
    host: str,
    port: int,
    dtype: str,
    api_key: str | None,
) -> tuple[list[str], dict[str, str]]:
    """Returns the command that starts the server, and the environment that it runs in.

    Args:
        model: a folder or a Hugging Face id.
        specs: methods that become model names.
        more: vLLM's own arguments, passed through.
        name: the name of the plain model.
        host, port, dtype: as in ``keepsight serve``.
        api_key: the key that requests must send; it goes into the environment, where no list of processes shows it.

    Raises:
        InputError: ``more`` holds a flag that is spelt here.
    """
    for flag in OURS:
        if any(one == flag or one.startswith(f"{flag}=") for one in more):
            raise InputError(
                f"{flag} is given to vLLM by keepsight serve itself: leave it out, see keepsight serve --help"
            )
    environment = {**os.environ, RUNNER: "0", SERVED: json.dumps(list(specs)), BASE: name}
    if api_key is not None:
        environment["VLLM_API_KEY"] = api_key
    flags = {
        "--model": model, "--served-model-name": name, "--host": host, "--port": str(port), "--dtype": dtype,
        "--scheduler-cls": SCHEDULER, "--logits-processors": PROCESSOR, "--middleware": MIDDLEWARE,
    }  # fmt: skip
    spelt = [part for flag, value in flags.items() for part in (flag, value)]
    return [sys.executable, "-m", MODULE, *spelt, NORMALISE, *more], environment


def replace_process(arguments: Sequence[str], environment: dict[str, str]) -> None:
    """Become that process: signals and its exit code are then vLLM's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(arguments[0], list(arguments), environment)
