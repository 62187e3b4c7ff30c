"""The scorer against the official ones, caption by caption, on published captions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from parity import chair
from parity._row import Row

FILES = [
    *(
        f"opera_{model}_{search}"
        for model in ("instructblip", "llava-1.5", "minigpt4", "shikra")
        for search in ("greedy", "beam5", "ours")
    ),
    "midlayers_llava15",
    "midlayers_llava15_guided",
    "paint_a",
    "popecap_Instruction1_instructblip",
    "popecap_Instruction1_llava",
    "popecap_Instruction1_mplug",
    "popecap_Instruction2_minigpt-4",
]
FAMILIES = ["pattern", "wordnet"]


@pytest.fixture
def data(shared: Path, family: str, request: pytest.FixtureRequest) -> Path:
    if family == "wordnet":
        request.getfixturevalue("nltk_data")
    return shared


def check(rows: Iterable[Row], *, count: int) -> None:
    found = list(rows)
    assert [row for row in found if row.differing or not row.compared] == []
    assert len(found) == count


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FILES)
def test_every_caption_and_figure_is_the_official_one(data: Path, name: str, family: str) -> None:
    check(chair.captions_file(data, name, family), count=4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["opera_llava-1.5_greedy", "opera_minigpt4_greedy"])
def test_words_are_the_official_ones(data: Path, name: str, family: str) -> None:
    check([chair.word_file(data, name, family)], count=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_tricky_captions(data: Path, family: str) -> None:
    check(chair.tricky(data, family), count=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_ground_truth_built_from_coco_files(data: Path, family: str) -> None:
    check(chair.ground_truth(data, family), count=5)


def test_no_caption_file_is_forgotten(shared: Path) -> None:
    folder = shared / "data" / "parity" / "chair" / "captions"
    assert sorted(path.stem for path in folder.glob("*.jsonl")) == sorted(FILES)
