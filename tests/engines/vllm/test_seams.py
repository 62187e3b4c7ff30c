"""A vLLM that was never tried, a changed name and a setting that does not fit are refused when a server starts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from keepsight.engines.vllm import seams
from keepsight.engines.vllm.seams import RUNNER, SUPPORTED, check_config, check_seam, check_version
from keepsight.errors import InputError, UnsupportedEngine
from keepsight.vllm import PROCESSOR, SCHEDULER, engine_args


def test_only_releases_that_were_tried() -> None:
    for version in (*SUPPORTED, f"{SUPPORTED[0]}+cpu"):
        check_version(version)
    for version in ("0.31.0", "0.33.0", "0.32.0.post1", "0.32.0rc1", "dev", "unknown"):
        with pytest.raises(UnsupportedEngine, match=rf"vLLM {version} was never tried.*{SUPPORTED[0]}"):
            check_version(version)


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv(RUNNER, "0")
    monkeypatch.setenv("KEEPSIGHT_VLLM_METHODS", "[]")
    with pytest.raises(UnsupportedEngine, match=rf"cannot be imported.*vLLM {SUPPORTED[0]}"):
        engine_args(model="m")


@pytest.mark.parametrize(
    ("place", "parameters", "words"),
    [
        ("json:dumps", ("obj",), "takes obj, skipna.* and not obj"),
        ("json:JSONDecoder.decode", ("self", "t"), "takes self, s, _w and not self, t"),
        ("json:nothing", (), "has no json:nothing"),
        ("json:JSONDecoder.nothing", (), "has no json:JSONDecoder.nothing"),
        ("no_such_module:x", (), "has no no_such_module:x"),
    ],
)
def test_changed_names_and_parameters_are_refused(place: str, parameters: Any, words: str) -> None:
    with pytest.raises(UnsupportedEngine, match=words.replace("skipna", "skipkeys")):
        check_seam(place, parameters)
    check_seam("json:JSONDecoder.decode", ("self", "s", "_w"))


def config(**changes: Any) -> Any:
    """A configuration that is supported, with changes by dotted names."""
    made = SimpleNamespace(
        use_v2_model_runner=False, speculative_config=None, kv_transfer_config=None, ec_transfer_config=None,
        ec_manager_config=SimpleNamespace(get_encoder_cache_manager_obj=lambda: None),
        model_config=SimpleNamespace(
            is_encoder_decoder=False, runner_type="generate",
            multimodal_config=SimpleNamespace(mm_processor_cache_type="lru"),
        ),
        scheduler_config=SimpleNamespace(long_prefill_token_threshold=0),
        cache_config=SimpleNamespace(mamba_cache_mode="none"),
    )  # fmt: skip
    for name, value in changes.items():
        *parents, last = name.split("__")
        inner: Any = made
        for parent in parents:
            inner = getattr(inner, parent)
        setattr(inner, last, value)
    return made


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("use_v2_model_runner", True, f"V2.*{RUNNER}=0"),
        ("speculative_config", object(), "speculative decoding"),
        ("kv_transfer_config", object(), "KV connector"),
        ("ec_transfer_config", object(), "encoder cache connector"),
        ("ec_manager_config__get_encoder_cache_manager_obj", lambda: object, "encoder cache of its own"),
        ("model_config__is_encoder_decoder", True, "encoder-decoder"),
        ("model_config__runner_type", "pooling", "does not generate"),
        ("scheduler_config__long_prefill_token_threshold", 5, "long-prefill-token-threshold"),
        ("cache_config__mamba_cache_mode", "align", "mamba-cache-mode"),
        ("model_config__multimodal_config__mm_processor_cache_type", "shm", "mm-processor-cache-type lru"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: str, value: Any, words: str) -> None:
    check_config(config())
    with pytest.raises(UnsupportedEngine, match=words):
        check_config(config(**{change: value}))


def test_the_second_model_runner_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_VLLM_METHODS", "[]")
    monkeypatch.setenv(RUNNER, "1")
    with pytest.raises(UnsupportedEngine, match=f"{RUNNER}=1 asks for.*set {RUNNER}=0"):
        engine_args(model="m")


def test_arguments_are_passed_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepsight.vllm.check_installed", lambda: None)
    monkeypatch.setenv("KEEPSIGHT_VLLM_METHODS", "[]")
    monkeypatch.delenv(RUNNER, raising=False)
    found = engine_args(["m3id"], model="m", logits_processors=["a:B"], seed=3)
    monkeypatch.setenv(RUNNER, "0")
    assert found == {
        "model": "m", "seed": 3, "mm_device_do_normalize": False, "scheduler_cls": SCHEDULER,
        "logits_processors": ["a:B", PROCESSOR],
    }  # fmt: skip
    assert engine_args(**found) == found
    with pytest.raises(InputError, match="leave it out"):
        engine_args(model="m", scheduler_cls="other.Scheduler")


@pytest.mark.vllm
def test_the_installed_vllm_has_every_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.check_installed()
    monkeypatch.setitem(seams.SEAMS, "vllm.v1.core.sched.scheduler:Scheduler.schedule", ("self",))
    with pytest.raises(UnsupportedEngine, match=r"Scheduler\.schedule takes self, throttle_prefills"):
        seams.check_installed()
