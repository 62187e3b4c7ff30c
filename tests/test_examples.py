from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from standin import save

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def printed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What each example prints on a random model in the packaged one's place."""
    monkeypatch.setattr("sightline.demo.model.WEIGHTS", checkpoint)
    texts = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        runpy.run_path(str(path), run_name="__main__")
        texts[path.stem] = capsys.readouterr().out
    return texts


def test_both_doors_say_the_same_and_streaming_as_well(printed: dict[str, str]) -> None:
    assert set(printed) == {"caption", "stream"}
    _, greedy, door, block = (line.partition(":")[2].strip() for line in printed["caption"].splitlines())
    assert door
    assert door == block == printed["stream"].strip()
    assert door != greedy
