from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def nltk_data(shared: Path) -> Path:
    """NLTK's tagger and WordNet, from the reference data."""
    import nltk

    folder = shared / "data" / "nltk_data"
    if not folder.is_dir():
        pytest.skip("the reference data folder ../shared holds no NLTK data")
    nltk.data.path.insert(0, str(folder))
    return folder
