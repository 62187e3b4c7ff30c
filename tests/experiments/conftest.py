from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standin import standin

from keepsight.experiments.decoding_config import build_configs
from keepsight.experiments.manifest import RunConfig
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.runner import execute
from keepsight.experiments.store import Run

STRONG = "vcd:alpha=3.0,beta=0.0,noise_step=999"
WEIGHTS = {"sha256": "of the stand-in", "revision": None}


@pytest.fixture(scope="session")
def model() -> tuple[Any, Any]:
    return standin()


@pytest.fixture(scope="session")
def plan() -> RunConfig:
    """Seven descriptions in batches of three: greedily, drawn, and with a strong method."""
    return RunConfig(
        bench=demo_benchmark("chair", "val", 7),
        ways=build_configs([STRONG, f"sample:temperature=2+{STRONG}"], ["greedy", "sample:temperature=2"]),
        max_new_tokens=6,
        batch=3,
    )


@pytest.fixture
def start(model: tuple[Any, Any], tmp_path: Path) -> Callable[..., Run]:
    """Run a plan with the stand-in: ``start(plan, "folder")``."""

    def start(plan: RunConfig, folder: str = "run", **options: Any) -> Run:
        return execute(plan, *model, tmp_path / folder, **{"weights": WEIGHTS, **options})

    return start


@pytest.fixture(scope="session")
def undisturbed(plan: RunConfig, model: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The plan, run by one process without a pause."""
    return execute(plan, *model, tmp_path_factory.mktemp("undisturbed") / "run", weights=WEIGHTS)
