from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each example prints, on the packaged model."""
    texts = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        runpy.run_path(str(path), run_name="__main__")
        texts[path.stem] = capsys.readouterr().out
    return texts


def test_both_doors_say_the_same_and_streaming_as_well(printed: dict[str, str]) -> None:
    assert set(printed) == {"caption", "stream"}
    there, greedy, door, block = (line.partition(":")[2].strip() for line in printed["caption"].splitlines())
    assert door
    assert door == block == printed["stream"].strip()
    assert door != greedy
    assert all(name in door for name in there.split(", ")), "on the picture that the example picked"
    assert "cup" in greedy
    assert "cup" not in door
