"""MME's score for tasks with two questions for each picture: existence, count, position, color.

Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", 2023 (2306.13394).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keepsight.eval.chair.captions import read_text
from keepsight.eval.chair.report import Interval
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile
from keepsight.eval.pope.answer_parsers import Answer, decide
from keepsight.eval.pope.score import Judged, Reply
from keepsight.eval.stats.bootstrap import mean_interval

BEST = 200
"""The best score of a task."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task's score.

    Attributes:
        task: the name of its file, without the ending.
        parser: the rule that read the answers; MME's own is "mme".
        n: questions, two for each of `images`.
        acc: share of questions answered right, in [0, 1]; an unreadable answer is wrong.
        acc_plus: share of pictures with both questions right, in [0, 1].
        score: 100 · (acc + acc_plus), MME's own unit, at most 200.
        unparsed: answers that could not be read (MME's "other").
        ci: 95 % bootstrap intervals over pictures of the three figures.
        replies: each answer and how it was read, in the file's order.
    """

    task: str
    parser: str
    n: int
    images: int
    acc: float
    acc_plus: float
    score: float
    unparsed: int
    ci: Mapping[str, Interval | None]
    replies: tuple[Judged, ...]

    def to_json(self) -> dict[str, Any]:
        """The task's figures and answers as JSON can hold them."""
        return {
            "task": self.task,
            "n": self.n,
            "images": self.images,
            "acc": self.acc,
            "acc_plus": self.acc_plus,
            "score": self.score,
            "unparsed": self.unparsed,
            "ci": {name: None if bounds is None else list(bounds) for name, bounds in self.ci.items()},
            "answers": [reply.to_json() for reply in self.replies],
        }


def read_task(path: str | Path) -> list[Reply]:
    """The answers of a task: lines of picture, question, right answer and answer, parted by tabs.

    Raises:
        EmptyFile: no answer.
        MalformedFile: a line has fewer than four fields or its right answer is not yes or no, or a picture has
            another number of questions than two; the message names file and line.
        DuplicateQuestion: a question about a picture comes twice.
    """
    path = Path(path)
    found: list[Reply] = []
    lines: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.removesuffix("\r").split("\t", 3)
        if len(fields) < 4:
            raise MalformedFile(
                f"{path}:{number}: picture, question, right answer and answer were expected, parted by tabs;"
                f" found {len(fields)} of the 4"
            )
        image, question, label, answer = fields
        spoken = label.strip().lower()
        if spoken not in ("yes", "no"):
            raise MalformedFile(f"{path}:{number}: the right answer must be yes or no, not {label!r:.40}")
        if not image.strip():
            raise MalformedFile(f"{path}:{number}: names no picture")
        first = lines.setdefault((image, question), number)
        if first != number:
            raise DuplicateQuestion(f"{path}:{number}: the same question as in line {first}: keep one")
        found.append(Reply(question_id=number, image=image, label=cast(Answer, spoken), answer=answer))
    if not found:
        raise EmptyFile(f"{path}: holds no answer")
    _check_pairs(found, path)
    return found


def _check_pairs(replies: Sequence[Reply], path: Path) -> None:
    questions: dict[Any, list[Reply]] = {}
    for reply in replies:
        questions.setdefault(reply.image, []).append(reply)
    for image, asked in questions.items():
        if len(asked) != 2:
            raise MalformedFile(
                f"{path}:{asked[0].question_id}: MME asks two questions about each picture, but {len(asked)} lines are"
                f" about {image!r}"
            )


def score_task(
    replies: Sequence[Reply],
    *,
    task: str = "existence",
    parser: str = "mme",
    resamples: int = 1000,
    seed: int = 0,
) -> TaskReport:
    """Score a task's answers as `read_task` gives them.

    The official script takes lines 1 and 2, 3 and 4, … for pairs; here a pair is what is about one picture.
    Raises `EmptyFile` for no answer, `UnknownParser`.
    """
    if not replies:
        raise EmptyFile("there is no answer to score")
    decisions = decide([reply.answer for reply in replies], [reply.label for reply in replies], parser)
    right: dict[Any, list[bool]] = {}
    for reply, decision in zip(replies, decisions, strict=True):
        right.setdefault(reply.image, []).append(decision == reply.label)
    of_questions = [sum(pair) for pair in right.values()]
    of_pictures = [int(all(pair)) for pair in right.values()]
    n, images = len(replies), len(right)
    sides = {
        "acc": (of_questions, [len(pair) for pair in right.values()]),
        "acc_plus": (of_pictures, [1] * images),
    }
    ci = {name: mean_interval([side], resamples=resamples, seed=seed) for name, side in sides.items()}
    both = mean_interval(list(sides.values()), resamples=resamples, seed=seed)
    ci["score"] = None if both is None else (BEST * both[0], BEST * both[1])
    acc, acc_plus = sum(of_questions) / n, sum(of_pictures) / images
    return TaskReport(
        task=task,
        parser=parser,
        n=n,
        images=images,
        acc=acc,
        acc_plus=acc_plus,
        score=100 * (acc + acc_plus),
        unparsed=decisions.count(None),
        ci=ci,
        replies=tuple(
            Judged(
                question_id=r.question_id, image=r.image, label=r.label, answer=r.answer, decision=decision
            )
            for r, decision in zip(replies, decisions, strict=True)
        ),
    )
