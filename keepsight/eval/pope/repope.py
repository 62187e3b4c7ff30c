"""Score answers to POPE's questions by the corrected labels of RePOPE as well.

Neuhaus and Hein, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", 2025 (arXiv 2504.15707), labelled POPE's
questions about COCO anew: some labels changed, and questions without a clear answer were left out. RePOPE's files have
POPE's form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keepsight.eval.errors import EmptyFile, UnmatchedAnswers
from keepsight.eval.image_ids import ImageId
from keepsight.eval.json_files import short
from keepsight.eval.pope.files import Question, read_questions, split_names
from keepsight.eval.pope.pairing import Joined, bare_question
from keepsight.eval.pope.score import Reply


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What RePOPE makes of the questions of one split.

    Attributes:
        questions: number of POPE's questions.
        kept: number of these that RePOPE has a label for; the others are left out of its score.
        yes_to_no, no_to_yes: number of kept questions whose label changed.
    """

    questions: int
    kept: int
    yes_to_no: int
    no_to_yes: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts as values that JSON can hold."""
        return {
            "questions": self.kept,
            "left_out": self.questions - self.kept,
            "yes_to_no": self.yes_to_no,
            "no_to_yes": self.no_to_yes,
        }


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Answers with RePOPE's labels.

    Attributes:
        replies: for each split, the answered questions that RePOPE has a label for, with that label.
        changes: for each split, what became of its questions.
    """

    replies: Mapping[str, tuple[Reply, ...]]
    changes: Mapping[str, Changes]


def correct(joined: Joined, paths: Sequence[str | Path]) -> Corrected:
    """Return the answers of all splits with RePOPE's labels.

    A question of RePOPE is found by its picture and what it asks about. All questions of RePOPE's file have to be among
    those of the split, so that a file for another split, or for another edition of POPE, is noticed.

    Args:
        joined: the answers, matched to POPE's questions.
        paths: one file of RePOPE for each split, such as `coco_repope_random.json`; their names tell the splits. The name
            does not matter where there are one split and one file.

    Raises:
        UnmatchedAnswers: a split has no file, a file has no split, or RePOPE asks what the split does not ask.
        EmptyFile: a file holds no question, or no answered question of a split has a label.
        MalformedFile: a file does not have POPE's form.
        DuplicateQuestion: a question comes twice in a file.
    """
    files = [Path(path) for path in paths]
    names = split_names(files)
    splits = list(joined.replies)
    if len(files) == len(splits) == 1:
        names = splits
    if set(names) != set(splits):
        raise UnmatchedAnswers(
            f"RePOPE's files are of the splits {', '.join(names)}, and the answers of {', '.join(splits)}: give one file for"
            " each split of the answers (--repope)"
        )
    replies: dict[str, tuple[Reply, ...]] = {}
    changes: dict[str, Changes] = {}
    for path, split in zip(files, names, strict=True):
        replies[split], changes[split] = _split(joined, split, path)
    return Corrected(
        replies={split: replies[split] for split in splits},
        changes={split: changes[split] for split in splits},
    )


def _split(joined: Joined, split: str, path: Path) -> tuple[tuple[Reply, ...], Changes]:
    """Return the answers of one split with RePOPE's labels, and what changed."""
    if not joined.pictures_known:
        raise UnmatchedAnswers(
            "the answers do not name the pictures, by which RePOPE's questions are found: give POPE's questions with"
            " --questions"
        )
    asked = {_about(question): question for question in joined.questions[split]}
    labels: dict[ImageId, Question] = {}
    for one in read_questions(path, split):
        question = asked.get(_about(one))
        if question is None:
            raise UnmatchedAnswers(
                f"{one.where}: {short(one.text)} about image {one.image!r} is no question of the split {split!r}: RePOPE"
                " corrects POPE's COCO files of today, split by split, and not those of 2023"
            )
        labels[question.question_id] = one
    changed = [
        (question.label, labels[question.question_id].label)
        for question in asked.values()
        if question.question_id in labels
    ]
    found = tuple(
        replace(reply, label=labels[reply.question_id].label)
        for reply in joined.replies[split]
        if reply.question_id in labels
    )
    if not found:
        raise EmptyFile(f"{path}: has a label for none of the answered questions of {split!r}")
    return found, Changes(
        questions=len(joined.questions[split]),
        kept=len(labels),
        yes_to_no=changed.count(("yes", "no")),
        no_to_yes=changed.count(("no", "yes")),
    )


def _about(question: Question) -> tuple[ImageId, str]:
    """Return what tells a question of a split from all others: its picture, and what it asks about."""
    return question.image, bare_question(question.text)
