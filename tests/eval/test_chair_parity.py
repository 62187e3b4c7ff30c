"""The scorer against the official ones, caption by caption, on published captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.eval.annotations import load_truth
from sightline.eval.captions import read_captions
from sightline.eval.chair import mentions, official_indices, score, words

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
def parity(shared: Path, family: str, request: pytest.FixtureRequest) -> Path:
    if family == "wordnet":
        request.getfixturevalue("nltk_data")
    return shared / "data" / "parity"


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# NLTK's tagger takes 2 ms a caption, so most of wordnet's files are left to the slow suite.
QUICK = ("opera_llava-1.5_greedy", "opera_minigpt4_beam5", "paint_a")
RUNS = [(name, "pattern") for name in FILES] + [
    pytest.param(name, "wordnet", marks=() if name in QUICK else pytest.mark.slow) for name in FILES
]


@pytest.mark.parametrize(("name", "family"), RUNS)
def test_every_caption_and_figure_is_the_official_one(parity: Path, name: str, family: str) -> None:
    captions = read_captions(parity / "chair" / "captions" / f"{name}.jsonl")
    official = json.loads((parity / "chair" / f"expected_{family}" / f"{name}.json").read_text())
    truth = load_truth([parity / "chair" / f"gt_objects_{family}.jsonl"], [c.image_id for c in captions])
    report = score(captions, truth, family=family, resamples=0)
    for row, entry in zip(report.captions, official["captions"], strict=True):
        assert list(row.generated) == entry["generated"], row.caption
        assert [[m.word, m.object] for m in row.hallucinated] == entry["hallucinated"], row.caption
        assert row.length == entry["n_words"], row.caption
        assert (row.chair_s, row.chair_i or 0) == (entry["CHAIRs"], entry["CHAIRi"])
        assert (row.recall or 0) == entry["Recall"]
        if entry["idxs"]:
            numbered = zip(
                mentions(row.caption, family=family),
                official_indices(row.caption, family=family),
                strict=True,
            )
            assert [number for mention, number in numbered if mention in row.hallucinated] == entry["idxs"]
    overall = official["overall"]
    assert report.chair_s == pytest.approx(overall["CHAIRs"], abs=1e-12)
    assert report.chair_i == pytest.approx(overall["CHAIRi"], abs=1e-12)
    assert report.recall == pytest.approx(overall["Recall"], abs=1e-12)
    if family == "wordnet":
        assert report.length == pytest.approx(100 * overall["Len"], abs=1e-9)
        fork = official["overall_pai_fork"]
        assert report.precision == pytest.approx(fork["Precision"], abs=1e-12)
        assert report.f1 == pytest.approx(fork["F1"], abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["opera_llava-1.5_greedy", "opera_minigpt4_greedy"])
def test_words_are_the_official_ones(parity: Path, name: str, family: str) -> None:
    captions = jsonl(parity / "chair" / "captions" / f"{name}.jsonl")
    official = jsonl(parity / "chair" / "tokens" / f"{name}.{family}.jsonl")
    for said, entry in list(zip(captions, official, strict=True))[:: 1 if family == "pattern" else 4]:
        assert [word.text for word in words(said["caption"], family=family)] == entry["words"]


@pytest.mark.parametrize("family", FAMILIES)
def test_tricky_captions(parity: Path, family: str) -> None:
    for case in jsonl(parity / "chair" / "tricky.jsonl"):
        caption, official = case["caption"], case[family]
        found = mentions(caption, family=family)
        assert [word.text for word in words(caption, family=family)] == official["words"], caption
        assert [mention.object for mention in found] == official["generated"], caption
        numbered = zip(found, official_indices(caption, family=family), strict=True)
        bad = [(m.word, m.object, number) for m, number in numbered if m.object not in case["gt_objects"]]
        assert [[word, name] for word, name, _ in bad] == official["hallucinated"], caption
        assert [number for *_, number in bad] == official["idxs"], caption


@pytest.mark.parametrize("family", FAMILIES)
def test_ground_truth_built_from_coco_files(parity: Path, family: str) -> None:
    folder = parity / "chair_gt_build"
    expected = json.loads((folder / "expected_objects.json").read_text())[family]
    paths = [
        folder / f"{kind}_{part}2014.json" for kind in ("instances", "captions") for part in ("val", "train")
    ]
    truth = load_truth(paths, expected, family)
    assert {str(image): sorted(objects) for image, objects in truth.items()} == expected
    captions = read_captions(folder / "captions_to_score.jsonl")
    report = score(captions, truth, family=family, resamples=0)
    official = json.loads((folder / f"expected_scores_{family}.json").read_text())
    assert report.chair_i == pytest.approx(official["overall"]["CHAIRi"], abs=1e-12)
    assert report.recall == pytest.approx(official["overall"]["Recall"], abs=1e-12)
    for row, entry in zip(report.captions, official["captions"], strict=True):
        assert list(row.generated) == entry["generated"]
        assert [[m.word, m.object] for m in row.hallucinated] == entry["hallucinated"]
