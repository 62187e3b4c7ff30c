"""CHAIR: words, objects, positions and figures of published captions, in both families."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keepsight.eval.annotations import load_truth
from keepsight.eval.chair.captions import read_captions
from keepsight.eval.chair.score import (
    FAMILIES,
    PerCaption,
    mentions,
    official_indices,
    score,
    words,
)
from parity._row import Row, tally

OVERALL = {"chair_s": "CHAIRs", "chair_i": "CHAIRi", "recall": "Recall"}
FORK = {"precision": "Precision", "f1": "F1"}


def differences(shared: Path) -> Iterator[Row]:
    """Every file of `parity/chair` and `parity/chair_gt_build`, family by family."""
    use_nltk_data(shared)
    folder = shared / "data" / "parity" / "chair"
    for family in FAMILIES:
        for path in sorted((folder / "captions").glob("*.jsonl")):
            yield from captions_file(shared, path.stem, family)
        for path in sorted((folder / "tokens").glob(f"*.{family}.jsonl")):
            yield word_file(shared, path.name.removesuffix(f".{family}.jsonl"), family)
        yield from tricky(shared, family)
        yield from ground_truth(shared, family)


def use_nltk_data(shared: Path) -> None:
    """Let NLTK find its tagger and WordNet in the reference folder."""
    import nltk

    folder = str(shared / "data" / "nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)


def captions_file(shared: Path, name: str, family: str) -> Iterator[Row]:
    """A file of captions: what each names and makes up, and where; its figures; the figures of all."""
    folder = shared / "data" / "parity" / "chair"
    file = f"chair/captions/{name}.jsonl"
    said = read_captions(folder / "captions" / f"{name}.jsonl")
    official = json.loads((folder / f"expected_{family}" / f"{name}.json").read_text(encoding="utf-8"))
    truth = load_truth(
        [folder / f"gt_objects_{family}.jsonl"], [caption.image_id for caption in said], family
    )
    report = score(said, truth, family=family, resamples=0)
    rows = list(zip(report.captions, official["captions"], strict=True))
    yield tally(
        file,
        f"{family}: objects named",
        ((row.caption, row.generated, entry["generated"]) for row, entry in rows),
    )
    yield tally(
        file,
        f"{family}: unsupported words and their positions",
        ((row.caption, made_up(row, family), theirs(entry)) for row, entry in rows),
    )
    yield tally(
        file,
        f"{family}: length, CHAIRs, CHAIRi, recall of a caption",
        (
            (row.caption, figures(row), [entry[key] for key in ("n_words", *OVERALL.values())])
            for row, entry in rows
        ),
    )
    overall = official["overall"]
    pairs = [(name, getattr(report, ours), overall[name]) for ours, name in OVERALL.items()]
    if family == "wordnet":
        fork = official["overall_pai_fork"]
        pairs += [(name, getattr(report, ours), fork[name]) for ours, name in FORK.items()]
        pairs.append(("Len", report.length and report.length / 100, overall["Len"]))
    yield tally(file, f"{family}: figures of the file", pairs)


def word_file(shared: Path, name: str, family: str) -> Row:
    """The words of every caption, pairs joined."""
    folder = shared / "data" / "parity" / "chair"
    said = jsonl(folder / "captions" / f"{name}.jsonl")
    official = jsonl(folder / "tokens" / f"{name}.{family}.jsonl")
    pairs = zip(said, official, strict=True)
    return tally(
        f"chair/tokens/{name}.{family}.jsonl",
        f"{family}: words",
        ((one["caption"], spoken(one["caption"], family), entry["words"]) for one, entry in pairs),
    )


def tricky(shared: Path, family: str) -> Iterator[Row]:
    """Captions written to trip a scorer."""
    cases = jsonl(shared / "data" / "parity" / "chair" / "tricky.jsonl")
    reports = [
        score([Said(0, case["caption"])], {0: case["gt_objects"]}, family=family, resamples=0).captions[0]
        for case in cases
    ]
    rows = list(zip(reports, cases, strict=True))
    file = "chair/tricky.jsonl"
    yield tally(
        file,
        f"{family}: words",
        ((c["caption"], spoken(c["caption"], family), c[family]["words"]) for c in cases),
    )
    yield tally(
        file,
        f"{family}: objects named",
        ((c["caption"], r.generated, c[family]["generated"]) for r, c in rows),
    )
    yield tally(
        file,
        f"{family}: unsupported words and their positions",
        ((c["caption"], made_up(r, family), theirs(c[family])) for r, c in rows),
    )
    yield tally(
        file,
        f"{family}: CHAIRs, CHAIRi, recall of a caption",
        ((c["caption"], figures(r)[1:], [c[family][key] for key in OVERALL.values()]) for r, c in rows),
    )


def ground_truth(shared: Path, family: str) -> Iterator[Row]:
    """Ground truth made from COCO's files, and captions scored against it."""
    folder = shared / "data" / "parity" / "chair_gt_build"
    expected = json.loads((folder / "expected_objects.json").read_text(encoding="utf-8"))[family]
    paths = [
        folder / f"{kind}_{part}2014.json" for kind in ("instances", "captions") for part in ("val", "train")
    ]
    truth = load_truth(paths, expected, family)
    yield tally(
        "chair_gt_build/expected_objects.json",
        f"{family}: objects of an image",
        ((image, sorted(truth.get(int(image), ())), objects) for image, objects in expected.items()),
    )
    said = read_captions(folder / "captions_to_score.jsonl")
    report = score(said, truth, family=family, resamples=0)
    official = json.loads((folder / f"expected_scores_{family}.json").read_text(encoding="utf-8"))
    rows = list(zip(report.captions, official["captions"], strict=True))
    file = f"chair_gt_build/expected_scores_{family}.json"
    yield tally(
        file,
        f"{family}: objects named",
        ((row.caption, row.generated, entry["generated"]) for row, entry in rows),
    )
    yield tally(
        file,
        f"{family}: unsupported words",
        ((row.caption, named(row), entry["hallucinated"]) for row, entry in rows),
    )
    yield tally(
        file,
        f"{family}: CHAIRs, CHAIRi, recall of a caption",
        (
            (row.caption, figures(row)[1:], [entry["metrics"][key] for key in OVERALL.values()])
            for row, entry in rows
        ),
    )
    yield tally(
        file,
        f"{family}: figures of the file",
        ((name, getattr(report, ours), official["overall"][name]) for ours, name in OVERALL.items()),
    )


class Said:
    """A caption of an image."""

    def __init__(self, image_id: int, caption: str) -> None:
        self.image_id = image_id
        self.caption = caption


def spoken(caption: str, family: str) -> list[str]:
    return [word.text for word in words(caption, family=family)]


def named(row: PerCaption) -> list[list[str]]:
    return [[mention.word, mention.object] for mention in row.hallucinated]


def made_up(row: PerCaption, family: str) -> tuple[list[list[str]], list[int]]:
    """The unsupported words, and where the official code, whose slip after a dropped seat is kept apart, puts them."""
    if not row.hallucinated:
        return [], []
    found = mentions(row.caption, family=family)
    numbered = zip(found, official_indices(row.caption, family=family), strict=True)
    return named(row), [number for mention, number in numbered if mention in row.hallucinated]


def theirs(entry: dict[str, Any]) -> tuple[list[list[str]], list[int]]:
    return entry["hallucinated"], entry["idxs"]


def figures(row: PerCaption) -> list[float]:
    """Length and rates of a caption; where we say None, the official code says 0."""
    return [row.length, row.chair_s, row.chair_i or 0, row.recall or 0]


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
