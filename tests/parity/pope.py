"""POPE: every rule's reading of every answer, each evaluator's figures, and the question files for two seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keepsight.eval.pope.answer_parsers import decide
from keepsight.eval.pope.build import build
from keepsight.eval.pope.files import read_answers, read_questions
from keepsight.eval.pope.object_lists import read_pictures
from keepsight.eval.pope.official_output import published
from keepsight.eval.pope.pairing import join
from keepsight.eval.pope.score import YesNoReport, score
from parity._row import Row

# What the reference files call the rules
NAMES = {
    "official": "pope_official",
    "opera": "opera_pai",
    "vcd": "vcd_rule",
    "lmms_eval": "lmms_eval",
    "vlmevalkit": "vlmevalkit",
    "mme": "mme",
    "beaf": "beaf",
}
COUNTS = {"TP": "tp", "FP": "fp", "TN": "tn", "FN": "fn"}
RATES = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1 score": "f1",
    "F1": "f1",
    "Yes ratio": "yes_ratio",
    "yes": "yes_ratio",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1_score": "f1",
    "yes_ratio": "yes_ratio",
    "acc": "accuracy",
    "Overall(F1)": "f1",
}


def differences(shared: Path) -> Iterator[Row]:
    parity = shared / "data" / "parity"
    for path in sorted((parity / "pope").glob("*.expected.json")):
        yield from _answers(path.with_name(path.name.replace(".expected.json", ".jsonl")), path, shared)
    yield from _tricky(parity / "pope" / "tricky_answers.jsonl", shared)
    for folder in sorted((parity / "pope_build").glob("seed*")):
        yield from _build(folder, parity, shared)


def _answers(path: Path, expected: Path, shared: Path) -> Iterator[Row]:
    file, lines = str(path.relative_to(shared)), _lines(path)
    joined = join(read_questions(path, "all"), read_answers(path))
    reports = {name: score(joined.replies["all"], name, resamples=0) for name in NAMES}
    for name, official in NAMES.items():
        pairs = zip(lines, reports[name].replies, strict=True)
        wrong = sum(_known(line["parsed"][official]) != reply.decision for line, reply in pairs)
        yield Row(file, f"{name}: answers read", len(lines), wrong)
    figures = json.loads(expected.read_text(encoding="utf-8"))
    for name, official in (NAMES | {"vcd": "vcd"}).items():
        if official in figures:
            wanted = figures[official]
            wrong = sum(not _equal(_figure(reports[name], key), value) for key, value in wanted.items())
            yield Row(file, f"{name}: figures", len(wanted), wrong)


def _figure(report: YesNoReport, key: str) -> float | None:
    """A figure as its evaluator prints it."""
    if key in COUNTS:
        return getattr(report.counts, COUNTS[key])
    if key == "unknow":  # VCD's share of labels other than yes and no: such files are refused here
        return 0.0
    if key == "unknown":
        return report.counts.unparsed
    figures = published(report) or {}
    value = figures[RATES[key]]
    return value if value is None or report.parser != "vlmevalkit" else 100 * value


def _tricky(path: Path, shared: Path) -> Iterator[Row]:
    lines = _lines(path)
    for name, official in NAMES.items():
        wrong = compared = 0
        for label in ("yes", "no") if name == "vcd" else ("yes",):
            key = f"vcd_rule_if_label_{label}" if name == "vcd" else official
            for line in lines:
                # One file for each: BEAF's rule shall not remember the answer before
                (read,) = decide([line["answer"]], [label], name)
                compared += 1
                wrong += read != _known(line["parsed"][key])
        yield Row(str(path.relative_to(shared)), f"{name}: answers read", compared, wrong)


def _build(folder: Path, parity: Path, shared: Path) -> Iterator[Row]:
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    sources = {
        "list": parity / "pope_build" / "segmentation.json",
        "COCO": parity / "chair_gt_build" / "instances_val2014.json",
    }
    for source, path in sources.items():
        built = build(
            read_pictures([path]),
            images=params["img_num"],
            per_image=params["sample_num"],
            seed=params["seed"],
        )
        for name, text in built.files("coco").items():
            official = (folder / name).read_text(encoding="utf-8").replace("imange", "image")
            if "_pope_" in name:
                compared, wrong = _differing(text.splitlines(), official.splitlines())
            else:
                compared, wrong = _differing(_pairs(text), _pairs(official))
            yield Row(str((folder / name).relative_to(shared)), f"from {source}", compared, wrong)


def _pairs(text: str) -> list[Any]:
    """A JSON object's entries, whose order counts."""
    found: Mapping[str, Any] = json.loads(text)
    return list(found.items())


def _differing(ours: list[Any], theirs: list[Any]) -> tuple[int, int]:
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    longer = max(len(ours), len(theirs))
    return longer, longer - same


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _known(read: str | None) -> str | None:
    """The evaluators write "unknown", "other" or the answer itself where they cannot read it."""
    return read if read in ("yes", "no") else None


def _equal(ours: float | None, theirs: float) -> bool:
    return ours is not None and abs(ours - theirs) < 1e-9
