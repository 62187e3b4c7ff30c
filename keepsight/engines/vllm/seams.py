"""What the engine uses of vLLM, checked when a server starts: a release that was never tried, and every private name.

vLLM calls its scheduler's interface not public. A changed name or signature must stop a server before it answers, and must
not show as a wrong token in the middle of an answer.
"""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from typing import Any

from keepsight.errors import UnsupportedEngine

SUPPORTED = ("0.32.0",)
"""The releases of vLLM under which the tests of ``make vllm`` have passed."""
_TRIED = f"vLLM {' or '.join(SUPPORTED)}, as docs/vllm.md says"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""The environment variable that chooses vLLM's model runner."""

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_ASYNC = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
SEAMS: dict[str, tuple[str, ...]] = {
    f"{_SCHEDULER}.add_request": ("self", "request"),
    f"{_SCHEDULER}.schedule": ("self", "throttle_prefills"),
    f"{_SCHEDULER}.update_from_output": ("self", "scheduler_output", "model_runner_output"),
    f"{_SCHEDULER}.finish_requests": ("self", "request_ids", "finished_status"),
    f"{_SCHEDULER}._handle_blocked_waiting_request": ("self", "request"),
    f"{_SCHEDULER}._reserve_prefill_lookahead": (
        "self", "request", "num_computed_tokens", "num_new_tokens",
    ),
    f"{_SCHEDULER}._preempt_request": ("self", "request", "timestamp", "drop_stale_output"),
    f"{_ASYNC}._update_after_schedule": ("self", "scheduler_output"),
    f"{_ASYNC}._update_request_with_output": ("self", "request", "new_token_ids", "is_stale"),
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks": ("self",),
    "vllm.v1.core.encoder_cache_manager:EncoderCacheManager.can_allocate": (
        "self", "request", "input_id", "encoder_compute_budget", "num_embeds_to_schedule",
    ),
    "vllm.v1.request:Request": (
        "request_id", "prompt_token_ids", "sampling_params", "pooling_params", "client_index", "arrival_time",
        "prompt_embeds", "prompt_is_token_ids", "mm_features", "lora_request", "cache_salt", "priority",
        "trace_headers", "block_hasher", "resumable", "session_id", "reasoning_ended", "reasoning_parser_kwargs",
        "abort_immediately", "kv_hints",
    ),
    "vllm.multimodal.inputs:MultiModalFeatureSpec": ("data", "modality", "identifier", "mm_position", "mm_hash"),
    "vllm.multimodal.inputs:MultiModalFieldElem": ("data", "field"),
    "vllm.multimodal.inputs:PlaceholderRange": ("offset", "length", "is_embed"),
    "vllm.v1.sample.logits_processor.interface:BatchUpdate": ("batch_size", "removed", "added", "moved"),
    "vllm.v1.sample.sampler:Sampler.apply_logits_processors": (
        "self", "logits", "sampling_metadata", "predict_bonus_token",
    ),
    "vllm.v1.sample.logits_processor:validate_logits_processors_parameters": (
        "logits_processors", "sampling_params",
    ),
}  # fmt: skip
"""What is overridden, called or built, and the parameters that it must have, in their order."""
ATTRIBUTES = (
    "requests", "running", "waiting", "grammar_compile_error_reqs", "kv_cache_manager", "encoder_cache_manager",
    "max_num_encoder_input_tokens", "max_num_active_reqs", "max_num_scheduled_tokens", "policy", "max_model_len",
    "num_waiting_for_streaming_input",
)  # fmt: skip
"""What a scheduler must have once it is made."""


def check_installed() -> None:
    """The installed vLLM must be one that was tried, and have every seam.

    Raises:
        UnsupportedEngine: there is no vLLM; another release; a name is gone or takes other parameters.
    """
    try:
        vllm = import_module("vllm")
    except ImportError as error:
        raise UnsupportedEngine(f"vLLM cannot be imported ({error}): install {_TRIED}") from error
    check_version(str(getattr(vllm, "__version__", "unknown")))
    for place, parameters in SEAMS.items():
        check_seam(place, parameters)


def check_version(version: str) -> None:
    """The release must be one that was tried; what follows a ``+``, such as ``cpu``, does not matter.

    Raises:
        UnsupportedEngine: it is not.
    """
    if version.partition("+")[0] not in SUPPORTED:
        raise UnsupportedEngine(
            f"vLLM {version} was never tried with this release of Keepsight: install {_TRIED}"
        )


def check_seam(place: str, parameters: tuple[str, ...]) -> None:
    """One function or class must take the parameters that it is known for.

    Args:
        place: ``module:name``, with a dot before a method.

    Raises:
        UnsupportedEngine: it is gone, or takes other parameters.
    """
    module, _, name = place.partition(":")
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        found = tuple(inspect.signature(value).parameters)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnsupportedEngine(f"this vLLM has no {place} ({error}): {_INSTALL}") from error
    if found != parameters:
        raise UnsupportedEngine(
            f"this vLLM's {place} takes {', '.join(found)} and not {', '.join(parameters)}: {_INSTALL}"
        )


_INSTALL = f"install {_TRIED} as it was released"


def check_config(config: Any) -> None:
    """The settings of a server must be ones under which requests can travel together.

    Args:
        config: vLLM's ``VllmConfig``.

    Raises:
        UnsupportedEngine: a setting is not supported; the message names it and says what to do.
    """
    for refused, why in (
        (
            config.use_v2_model_runner,
            f"its model runner V2 has another interface for logits processors: set {RUNNER}=0",
        ),
        (config.speculative_config is not None, "speculative decoding is on: start it without"),
        (config.kv_transfer_config is not None, "a KV connector is set: start it without"),
        (config.ec_transfer_config is not None, "an encoder cache connector is set: start it without"),
        (
            config.ec_manager_config.get_encoder_cache_manager_obj() is not None,
            "an encoder cache of its own is set: start it without",
        ),
        (config.model_config.is_encoder_decoder, "the model is an encoder-decoder: serve a decoder-only one"),
        (
            config.model_config.runner_type != "generate",
            "the model does not generate: serve it without Keepsight",
        ),
        (
            config.scheduler_config.long_prefill_token_threshold > 0,
            "long prompts would be cut: start it without --long-prefill-token-threshold",
        ),
        (
            config.cache_config.mamba_cache_mode == "align",
            "prompts would be cut at blocks: start it without --mamba-cache-mode align",
        ),
        (
            _cache_type(config) == "shm",
            "pictures would stay in shared memory: start it with --mm-processor-cache-type lru",
        ),
    ):
        if refused:
            raise UnsupportedEngine(f"vLLM cannot be used with Keepsight's methods like this: {why}")


def _cache_type(config: Any) -> Any:
    multimodal = config.model_config.multimodal_config
    return None if multimodal is None else multimodal.mm_processor_cache_type


def check_scheduler(scheduler: Any) -> None:
    """A scheduler must have what is read of it.

    Raises:
        UnsupportedEngine: something is missing.
    """
    if missing := [name for name in ATTRIBUTES if not hasattr(scheduler, name)]:
        raise UnsupportedEngine(f"this vLLM's scheduler has no {missing[0]}: {_INSTALL}")


def keep_first_runner() -> None:
    """Chooses the model runner V1 for every process that this one starts.

    Raises:
        UnsupportedEngine: the environment asks for V2.
    """
    if os.environ.get(RUNNER, "0").strip().lower() not in ("0", "false", ""):
        raise UnsupportedEngine(
            f"{RUNNER}={os.environ[RUNNER]} asks for vLLM's model runner V2, whose logits processors have another"
            f" interface: set {RUNNER}=0"
        )
    os.environ[RUNNER] = "0"
