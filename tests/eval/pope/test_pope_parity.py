"""POPE and MME against the official evaluators and the official builder."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity import mme, pope

from keepsight.eval.pope.files import read_answers, read_questions
from keepsight.eval.pope.pairing import join
from keepsight.eval.pope.score import score


@pytest.mark.parametrize("module", [pope, mme])
def test_nothing_differs_from_the_official_figures(shared: Path, module: object) -> None:
    rows = list(module.differences(shared))
    assert sum(row.compared for row in rows) > (40_000 if module is pope else 9)
    assert [row for row in rows if row.differing or not row.compared] == []


def test_a_difference_would_be_seen(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pope, "_known", lambda read: read)
    differing = [row.what for row in pope.differences(shared) if row.differing]
    assert "lmms_eval: answers read" in differing


def test_strict_reads_every_published_answer_as_its_author_did(shared: Path) -> None:
    for path in sorted((shared / "data" / "parity" / "pope").glob("*_random*.jsonl")):
        replies = join(read_questions(path, "all"), read_answers(path)).replies["all"]
        ours, official = (score(replies, name, resamples=0) for name in ("strict", "official"))
        assert [reply.decision for reply in ours.replies] == [reply.decision for reply in official.replies]


def test_every_published_file_of_questions_is_read(shared: Path) -> None:
    sizes = {
        str(path.relative_to(shared / "data" / "pope")): len(read_questions(path))
        for path in sorted((shared / "data" / "pope").glob("*/*_pope_*.json"))
    }
    assert sizes.pop("coco_old2023/coco_pope_random.json") == 2910
    assert len(sizes) == 9
    assert set(sizes.values()) == {3000}
