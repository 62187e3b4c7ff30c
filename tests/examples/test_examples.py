from __future__ import annotations

import io
import runpy
from contextlib import redirect_stdout
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What each example prints, on the packaged model."""
    texts = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        with redirect_stdout(io.StringIO()) as out:
            runpy.run_path(str(path), run_name="__main__")
        texts[path.stem] = out.getvalue()
    return texts


def test_both_doors_say_the_same_and_streaming_as_well(printed: dict[str, str]) -> None:
    assert set(printed) == {"app", "caption", "pipeline", "stream"}
    there, greedy, door, block = (line.partition(":")[2].strip() for line in printed["caption"].splitlines())
    assert door
    assert door == block == printed["stream"].strip()
    assert door != greedy
    assert all(name in door for name in there.split(", ")), "on the picture that the example picked"
    assert "cup" in greedy
    assert "cup" not in door


@pytest.mark.parametrize("name", ["pipeline", "app"])
def test_existing_code_changes_only_within_the_block(printed: dict[str, str], name: str) -> None:
    plain, mitigated = (line.partition(":")[2].strip() for line in printed[name].splitlines())
    _, greedy, door, _ = (line.partition(":")[2].strip() for line in printed["caption"].splitlines())
    assert (plain, mitigated) == (greedy, door)
