"""POPE's answers by RePOPE's labels: worked by hand, and on the real files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from keepsight.eval.errors import EmptyFile, UnmatchedAnswers
from keepsight.eval.pope.pairing import match_files
from keepsight.eval.pope.repope import Changes, correct
from keepsight.eval.pope.score import score

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(name: str, *entries: object) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
        return path

    return lines


def asked(number: int, image: str, name: str, label: str) -> dict:
    return {"question_id": number, "image": image, "text": f"Is there a {name} in the image?", "label": label}


# Six questions. RePOPE leaves the fourth out, finds no dog (1) and a kite after all (6); it numbers as POPE does.
POPE = [
    asked(1, "a.jpg", "dog", "yes"),
    asked(2, "a.jpg", "car", "no"),
    asked(3, "b.jpg", "cat", "yes"),
    asked(4, "b.jpg", "bus", "no"),
    asked(5, "c.jpg", "cup", "yes"),
    asked(6, "c.jpg", "kite", "no"),
]
REPOPE = [
    asked(1, "a.jpg", "dog", "no"),
    POPE[1],
    POPE[2],
    POPE[4],
    asked(6, "c.jpg", "kite", "yes"),
]
SAID = ["Yes", "No", "No", "Yes", "Yes", "Yes"]


def answers(*texts: str) -> list[dict]:
    return [{"question_id": number, "text": text} for number, text in enumerate(texts, start=1)]


def test_worked_by_hand(write: Write) -> None:
    joined = match_files([write("a.jsonl", *answers(*SAID))], [write("coco_pope_random.json", *POPE)])
    before = score(joined.replies["random"], resamples=0)
    # POPE: dog and cup right, cat missed; bus and kite wrongly seen, no car right.
    assert (before.counts.tp, before.counts.fn, before.counts.fp, before.counts.tn) == (2, 1, 2, 1)
    assert (before.accuracy, before.precision, before.recall) == (3 / 6, 2 / 4, 2 / 3)
    corrected = correct(joined, [write("coco_repope_random.json", *REPOPE)])
    after = score(corrected.replies["random"], resamples=0)
    # RePOPE: cup and kite right, cat missed; dog wrongly seen, no car right; the bus is not asked about.
    assert (after.counts.tp, after.counts.fn, after.counts.fp, after.counts.tn) == (2, 1, 1, 1)
    assert (after.accuracy, after.precision, after.recall) == (3 / 5, 2 / 3, 2 / 3)
    assert after.f1 == pytest.approx(2 / 3)
    assert corrected.changes == {"random": Changes(questions=6, kept=5, yes_to_no=1, no_to_yes=1)}


def test_questions_are_found_by_picture_and_object_not_by_number(write: Write) -> None:
    joined = match_files([write("a.jsonl", *answers(*SAID))], [write("q.json", *POPE)])
    other = [line | {"question_id": 100 - at} for at, line in enumerate(reversed(REPOPE))]
    found = correct(joined, [write("labels.json", *other)])
    assert [(reply.question_id, reply.label) for reply in found.replies["q"]] == [
        (1, "no"),
        (2, "no"),
        (3, "yes"),
        (5, "yes"),
        (6, "yes"),
    ]


def test_unanswered_questions_change_no_count_of_labels(write: Write) -> None:
    questions = write("coco_pope_random.json", *POPE)
    joined = match_files([write("a.jsonl", *answers(*SAID[:3]))], [questions], partial=True)
    found = correct(joined, [write("coco_repope_random.json", *REPOPE)])
    assert len(found.replies["random"]) == 3
    assert found.changes["random"] == Changes(questions=6, kept=5, yes_to_no=1, no_to_yes=1)
    one = match_files([write("b.jsonl", {"question_id": 4, "text": "No"})], [questions], partial=True)
    with pytest.raises(EmptyFile, match="a label for none of the answered questions of 'random'"):
        correct(one, [write("coco_repope_random.json", *REPOPE)])


def test_what_does_not_fit_is_refused(write: Write) -> None:
    questions = [write("coco_pope_random.json", *POPE), write("coco_pope_popular.json", *POPE[:2])]
    said = [write("a.jsonl", *answers(*SAID)), write("b.jsonl", *answers(*SAID[:2]))]
    joined = match_files(said, questions)
    labels = write("coco_repope_random.json", *REPOPE)
    with pytest.raises(UnmatchedAnswers, match="of the splits random, and the answers of random, popular"):
        correct(joined, [labels])
    popular = write("coco_repope_popular.json", *REPOPE)
    with pytest.raises(
        UnmatchedAnswers, match=r"repope_popular.json:3: .*cat.* is no question of the split 'popular'"
    ):
        correct(joined, [labels, popular])
    both = correct(joined, [write("coco_repope_popular.json", *REPOPE[:2]), labels])
    assert list(both.replies) == ["random", "popular"]
    own = [
        {
            "question": line["text"],
            "label": line["label"],
            "answer": "Yes",
            "question_id": line["question_id"],
        }
        for line in POPE
    ]
    with pytest.raises(UnmatchedAnswers, match="do not name the pictures"):
        correct(match_files([write("x_random.jsonl", *own)]), [labels])


@pytest.mark.parametrize(
    ("split", "kept", "to_no", "to_yes"),
    [("random", 2774, 139, 5), ("popular", 2727, 139, 39), ("adversarial", 2684, 139, 33)],
)
def test_the_real_files(shared: Path, write: Write, split: str, kept: int, to_no: int, to_yes: int) -> None:
    folder = shared / "data"
    questions = folder / "pope" / "coco" / f"coco_pope_{split}.json"
    labels = folder / "repope" / f"coco_repope_{split}.json"
    if not labels.is_file():
        pytest.skip("the reference data folder ../shared holds no RePOPE")
    joined = match_files([write("a.jsonl", *answers(*["Yes"] * 3000))], [questions])
    found = correct(joined, [labels])
    assert found.changes[split] == Changes(questions=3000, kept=kept, yes_to_no=to_no, no_to_yes=to_yes)
    # Who always says yes is right wherever RePOPE says yes, counted here from the file alone.
    right = Counter(json.loads(line)["label"] for line in labels.read_text().splitlines())["yes"]
    assert score(found.replies[split], resamples=0).accuracy == right / kept


def test_published_shares_of_wrong_labels(shared: Path, write: Write) -> None:
    """The paper's shares: 9.3 % of POPE's yes labels and 1.7 % of its no labels are wrong."""
    folder = shared / "data"
    if not (folder / "repope").is_dir():
        pytest.skip("the reference data folder ../shared holds no RePOPE")
    splits = ("random", "popular", "adversarial")
    questions = [folder / "pope" / "coco" / f"coco_pope_{split}.json" for split in splits]
    said = [write(f"{split}.jsonl", *answers(*["Yes"] * 3000)) for split in splits]
    joined = match_files(said, questions)
    changes = correct(joined, [folder / "repope" / f"coco_repope_{split}.json" for split in splits]).changes
    labels = Counter(reply.label for group in joined.replies.values() for reply in group)
    assert round(100 * sum(one.yes_to_no for one in changes.values()) / labels["yes"], 1) == 9.3
    assert round(100 * sum(one.no_to_yes for one in changes.values()) / labels["no"], 1) == 1.7


def test_clearsights_answers_by_both_labels(shared: Path, write: Write) -> None:
    """LLaVA's published answers (half of the pictures), counted anew from the files."""
    folder = shared / "data"
    source = folder / "parity" / "pope" / "clearsight_llava_random.jsonl"
    labels = folder / "repope" / "coco_repope_random.json"
    if not (source.is_file() and labels.is_file()):
        pytest.skip("the reference data folder ../shared holds no answers of ClearSight, or no RePOPE")
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    said = write("a.jsonl", *({"question_id": line["question_id"], "text": line["answer"]} for line in lines))
    joined = match_files([said], [folder / "pope" / "coco" / "coco_pope_random.json"], partial=True)
    report = score(correct(joined, [labels]).replies["random"], resamples=0)
    right = {
        (one["image"], one["text"]): one["label"] for one in map(json.loads, labels.read_text().splitlines())
    }
    pairs = Counter(
        (right[key], line["answer"].strip(" .").lower())
        for line in lines
        if (key := (line["image"], line["question"])) in right
    )
    counts = report.counts
    assert (counts.tp, counts.fn) == (pairs["yes", "yes"], pairs["yes", "no"])
    assert (counts.fp, counts.tn) == (pairs["no", "yes"], pairs["no", "no"])
    assert report.n == sum(pairs.values()) == 1332
