from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Tiny tensors: a second thread costs more than it gives, and sums keep one order
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data that stands beside the project on machines that have it."""
    if not SHARED.is_dir():
        pytest.skip("the reference data folder ../shared is not on this machine")
    return SHARED
