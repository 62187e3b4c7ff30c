"""MME's score for its tasks with two questions about each picture: existence, count, position and color.

Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", 2023 (2306.13394).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keepsight.eval.chair.report import Interval
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile
from keepsight.eval.json_files import read_text
from keepsight.eval.pope.answer_parsers import Answer, decide
from keepsight.eval.pope.score import Judged, Reply
from keepsight.eval.stats.bootstrap import mean_interval

BEST = 200
"""The best score of a task: 100 for accuracy and 100 for accuracy over pictures."""


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The score of one task.

    Attributes:
        task: the name of the task's file without its ending.
        parser: the rule that read the answers; MME's own rule is "mme".
        n: number of questions, two for each picture.
        images: number of pictures.
        acc: share of questions that were answered right, in [0, 1]; an unreadable answer is wrong.
        acc_plus: share of pictures with both questions right, in [0, 1].
        score: 100 · (acc + acc_plus), which is MME's own unit, in [0, 200].
        unparsed: number of answers that could not be read (MME's "other").
        ci: 95 % bootstrap intervals over pictures of `acc`, `acc_plus` and `score`.
        replies: each answer and how it was read, in the order of the file.
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
        """Return the task's figures and answers as values that JSON can hold."""
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
    """Read the answers of a task: one line each of picture, question, right answer and answer, separated by tabs.

    Raises:
        EmptyFile: the file holds no answer.
        MalformedFile: a line has fewer than four fields or its right answer is not yes or no, or a picture has
            another number of questions than two; the message names the file and the line.
        DuplicateQuestion: a question about a picture comes twice.
    """
    path = Path(path)
    found: list[Reply] = []
    lines: dict[tuple[str, str], int] = {}
    # `splitlines` would also cut at marks such as U+2028, which may stand inside an answer.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        # Only the first three tabs separate fields: an answer may hold tabs of its own.
        fields = line.removesuffix("\r").split("\t", 3)
        if len(fields) < 4:
            json_instead = (
                ": this looks like JSON, and MME's answers are read from its own text files alone"
                if line.lstrip()[:1] in "[{"
                else ""
            )
            raise MalformedFile(
                f"{path}:{number}: picture, question, right answer and answer were expected, parted by tabs;"
                f" found {len(fields)} of the 4{json_instead}"
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
        # MME's lines have no ids, so that the number of the line stands for one.
        found.append(Reply(question_id=number, image=image, label=cast(Answer, spoken), answer=answer))
    if not found:
        raise EmptyFile(f"{path}: holds no answer")
    _check_pairs(found, path)
    return found


def count_unbalanced(report: TaskReport) -> int:
    """Return the number of pictures whose two labels are not a yes and a no.

    MME asks about every picture one question of each kind, so that others suggest that labels and answers stand in each
    other's place.
    """
    labels: dict[Any, set[str]] = {}
    for reply in report.replies:
        labels.setdefault(reply.image, set()).add(reply.label)
    return sum(len(of_picture) == 1 for of_picture in labels.values())


def _check_pairs(replies: Sequence[Reply], path: Path) -> None:
    """Raise `MalformedFile` unless every picture has exactly two questions."""
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
    """Score the answers of a task.

    The official script takes lines 1 and 2, lines 3 and 4, and so on for pairs; here the two questions about one picture
    are a pair, wherever they stand.

    Args:
        replies: the answers as `read_task` returns them.
        task: the name of the task, which the report repeats.
        parser: the rule that reads the answers, one of `answer_parsers.PARSERS`; MME's own by default.
        resamples: number of bootstrap resamples of the pictures; 0 gives no intervals.
        seed: seed of the bootstrap.

    Raises:
        EmptyFile: there is no answer.
        UnknownParser: no rule has this name.
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
        # Both shares are ratios of sums over pictures, since the bootstrap draws pictures and not questions.
        "acc": (of_questions, [len(pair) for pair in right.values()]),
        "acc_plus": (of_pictures, [1] * images),
    }
    ci = {name: mean_interval([side], resamples=resamples, seed=seed) for name, side in sides.items()}
    # `score` is 200 times the mean of the two shares, so that the interval of that mean, scaled, is the interval of `score`.
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
