"""Engines of vLLM for these tests. ``make vllm`` installs what is needed; without vLLM what needs it is skipped."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_for_vllm import convert
from inside_vllm import SETTINGS

from keepsight.demo.model import checkpoint
from keepsight.vllm import engine_args


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and "vllm" in item.keywords:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "vllm" in item.keywords and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make vllm runs these in an environment of their own")


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    # vLLM reads its environment when it is imported, and its processes inherit it
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def demo64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(checkpoint(), tmp_path_factory.mktemp("vllm") / "demo64")


@pytest.fixture(scope="session")
def start(demo64: Path) -> Iterator[Callable[..., Any]]:
    """Starts an engine; the one before ends."""
    running: list[Any] = []

    def end() -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        while running:
            running.pop().llm_engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()

    def begin(methods: Any = (), **options: Any) -> Any:
        from vllm import LLM

        end()
        settings = {
            "model": str(demo64), "dtype": "float32", "enforce_eager": True, "limit_mm_per_prompt": {"image": 2},
            "max_num_seqs": 64, "max_model_len": 512, "distributed_executor_backend": "uni",
        }  # fmt: skip
        running.append(LLM(**engine_args(methods, **{**settings, **options})))
        return running[-1]

    yield begin
    end()
