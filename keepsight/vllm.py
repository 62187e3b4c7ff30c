"""Contrastive methods inside vLLM: what its engine is started with, and what a request says::

    from keepsight.vllm import engine_args, extra_args

    from vllm import LLM, SamplingParams

    llm = LLM(**engine_args(model="llava-hf/llava-1.5-7b-hf"))
    llm.generate(prompt, SamplingParams(extra_args=extra_args("m3id:decay=0.05")))

Importing this module does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keepsight.engines.vllm.placing import SPEC, TEXT_ONLY, check_arguments, serve
from keepsight.engines.vllm.seams import check_installed, keep_first_runner
from keepsight.errors import InputError

__all__ = ["SCHEDULER", "PROCESSOR", "engine_args", "extra_args"]

SCHEDULER = "keepsight.engines.vllm.PairScheduler"
"""What vLLM's ``--scheduler-cls`` takes."""
PROCESSOR = "keepsight.engines.vllm:Contrast"
"""What vLLM's ``--logits-processors`` takes."""


def engine_args(methods: Sequence[str] | None = None, **vllm_args: Any) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``, or of ``vllm.EngineArgs``, with methods in place.

    Pictures are normalised before they reach the engine (``mm_device_do_normalize=False``), so that VCD finds them as it
    does on transformers. Sets ``VLLM_USE_V2_MODEL_RUNNER=0`` in the environment, and notes there which specs are served, so
    that vLLM's own processes find them. Requests may name any registered method with plain values, and beyond that what is
    served.

    Args:
        methods: specs that must be usable, such as ``["m3id:decay=0.05"]``; they may name classes of your own,
            ``package.module:Class``. Requests then name them by the same text. Default: none.
        vllm_args: vLLM's own arguments, passed through. Logits processors among them act before the contrast.

    Returns:
        ``vllm_args`` with ``scheduler_cls``, ``logits_processors`` and ``mm_device_do_normalize``.

    Raises:
        UnsupportedModel: a method cannot be used inside vLLM; the message names it and says why.
        UnsupportedEngine: no vLLM that was tried is installed, or the environment asks for its model runner V2.
        InputError: ``vllm_args`` name another scheduler.
        KeepsightError: a spec is wrong, as ``keepsight.parse_all``.
    """
    if vllm_args.get("scheduler_cls") not in (None, SCHEDULER):
        raise InputError("scheduler_cls is Keepsight's own inside vLLM: leave it out")
    serve(methods or ())
    keep_first_runner()
    check_installed()
    others = [one for one in vllm_args.get("logits_processors") or () if one != PROCESSOR]
    vllm_args = {"mm_device_do_normalize": False, **vllm_args}
    return {**vllm_args, "scheduler_cls": SCHEDULER, "logits_processors": [*others, PROCESSOR]}


def extra_args(spec: str, *, text_only: Sequence[int] | None = None) -> dict[str, Any]:
    """What a request says about its methods: ``SamplingParams(extra_args=…)``, or ``vllm_xargs`` over HTTP.

    Args:
        spec: the methods, such as ``"m3id:decay=0.05"``; ``+`` joins several.
        text_only: the token ids of the prompt as the chat template writes it without its pictures. By default the
            pictures' tokens are dropped from the prompt, which leaves what the template wrote around them.

    Raises:
        UnsupportedModel: a method cannot be used inside vLLM; the message names it and says why.
        KeepsightError: the spec is wrong, or names what only the operator may name; ``text_only`` is no list of ids.
    """
    arguments: dict[str, Any] = {SPEC: spec}
    if text_only is not None:
        arguments[TEXT_ONLY] = [int(one) for one in text_only]
    check_arguments(arguments)
    return arguments
