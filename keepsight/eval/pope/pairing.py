"""Match answers to their questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile, UnmatchedAnswers
from keepsight.eval.image_ids import ImageId
from keepsight.eval.json_files import short
from keepsight.eval.pope.files import (
    Question,
    Said,
    read_answers,
    read_questions,
    split_names,
)
from keepsight.eval.pope.score import Reply


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Answers matched to their questions.

    Attributes:
        replies: for each split, the answered questions in the order of the questions.
        failed: for each split, the number of questions that the model failed to answer; they are not scored.
        missing: for each split, the number of questions without an answer; always 0 without `partial`.
    """

    replies: Mapping[str, tuple[Reply, ...]]
    failed: Mapping[str, int]
    missing: Mapping[str, int]


def match_files(
    answers: Sequence[Path],
    questions: Sequence[Path] = (),
    *,
    method: str | None = None,
    partial: bool = False,
) -> Joined:
    """Read files of answers and of questions, and match every answer to its question.

    Args:
        answers: one file for each file of questions, in the same order, or one file that answers all questions.
        questions: the files of questions. Without any, each line of the answers has to hold its own `image`, `question`
            and `label`.
        method: the method whose answers are kept, as in `read_answers`.
        partial: whether questions may lack an answer, as in `join`. A split in which no question has an answer is then
            left out of the replies.

    Raises:
        UnmatchedAnswers: the numbers of files do not fit, or an answer and a question do not, as in `join`.
        DuplicateQuestion: two files hold the same split, or a question or an answer comes twice.
        EmptyFile: a file is empty, or all answers to a split failed.
        MalformedFile: a file does not have the documented form.
    """
    if not questions:
        return _with_their_own_questions(answers, method=method)
    if len(answers) not in (1, len(questions)):
        raise UnmatchedAnswers(
            f"{len(answers)} files of answers and {len(questions)} of questions: give one file of answers for each file"
            " of questions, in one order, or a single one that answers all"
        )
    asked = [read_questions(path, name) for path, name in zip(questions, split_names(questions), strict=True)]
    said = [read_answers(path, method=method) for path in answers]
    # A single file of answers has to be matched to all questions at once: matched to one file of questions after the other,
    # most of its answers would belong to no question.
    if len(said) == 1:
        asked = [[question for group in asked for question in group]]
    replies: dict[str, tuple[Reply, ...]] = {}
    failed: dict[str, int] = {}
    missing: dict[str, int] = {}
    for path, ask, say in zip(answers, asked, said, strict=True):
        joined = join(ask, say, source=str(path), partial=partial)
        for split, group in joined.replies.items():
            # `failed` has an entry for every split seen before, while `replies` leaves out splits without answers.
            if split in failed:
                raise DuplicateQuestion(
                    f"{path}: another file holds the split {split!r} as well: score them apart"
                )
            if not group and joined.failed[split]:
                raise EmptyFile(
                    f"{path}: all {joined.failed[split]} answers to {split!r} failed: nothing to score"
                )
            failed[split], missing[split] = joined.failed[split], joined.missing[split]
            if group:
                replies[split] = group
    return Joined(replies=replies, failed=failed, missing=missing)


def _with_their_own_questions(answers: Sequence[Path], *, method: str | None) -> Joined:
    """Return the answers of files that also hold their questions and labels."""
    for path in answers:
        # Answers are read first, so that a file without answers is not reported to lack labels.
        read_answers(path, method=method)
    try:
        for path in answers:
            read_questions(path)
    except MalformedFile as error:
        raise MalformedFile(
            f"{error}; where answers hold no labels, give the questions with --questions"
        ) from error
    return match_files(answers, answers, method=method)


def shared_questions(a: Joined, b: Joined) -> tuple[Joined, Joined]:
    """Return both without the questions that only one of them answered, so that their scores can be paired.

    Raises:
        UnmatchedAnswers: a split has no question that both answered.
    """
    kept: list[dict[str, tuple[Reply, ...]]] = [{}, {}]
    for split in a.replies:
        groups = a.replies[split], b.replies.get(split, ())
        both = set.intersection(*({reply.question_id for reply in group} for group in groups))
        if not both:
            raise UnmatchedAnswers(f"{split!r}: no question is answered on both sides")
        for side, group in zip(kept, groups, strict=True):
            side[split] = tuple(reply for reply in group if reply.question_id in both)
    first, second = (
        Joined(replies=replies, failed=side.failed, missing=side.missing)
        for replies, side in zip(kept, (a, b), strict=True)
    )
    return first, second


def join(
    questions: Sequence[Question], answers: Sequence[Said], *, source: str = "answers", partial: bool = False
) -> Joined:
    """Match every answer to its question.

    Answers without ids are matched by their order. An answer that repeats its question or names its picture has to repeat
    or name the right one: POPE's splits share their ids, so that answers to one would pass for answers to another.

    Args:
        questions: the questions of one split or of several.
        answers: the answers to them.
        source: what an error calls the answers, such as their file.
        partial: whether questions may lack an answer; they are then counted instead of raising.

    Raises:
        UnmatchedAnswers: an answer belongs to no question or to another one, or a question has no answer.
        DuplicateQuestion: a question is answered twice.
        MalformedFile: some answers have ids and others have none, or an answer has neither an id nor its question.
    """
    if any(said.question_id is None for said in answers):
        matched = _by_order(questions, answers, source)
    else:
        matched = _by_id(questions, answers)
    for at, said in matched.items():
        _check_same(questions[at], said)
    missing = [question for at, question in enumerate(questions) if at not in matched]
    if missing and not partial:
        raise UnmatchedAnswers(
            f"{source}: {len(missing)} of {len(questions)} questions have no answer, first"
            f" {missing[0].question_id!r} of {missing[0].where}; to score the rest alone: --partial (partial=True)"
        )
    splits = list(dict.fromkeys(question.split for question in questions))
    replies: dict[str, list[Reply]] = {split: [] for split in splits}
    failed = dict.fromkeys(splits, 0)
    for at, question in enumerate(questions):
        if at not in matched:
            continue
        answer = matched[at].answer
        if answer is None:
            failed[question.split] += 1
            continue
        replies[question.split].append(
            Reply(question_id=question.question_id, image=question.image, label=question.label, answer=answer)
        )
    return Joined(
        replies={split: tuple(group) for split, group in replies.items()},
        failed=failed,
        missing={split: sum(question.split == split for question in missing) for split in splits},
    )


def _by_order(questions: Sequence[Question], answers: Sequence[Said], source: str) -> dict[int, Said]:
    """Return the answers, which have no ids, by the numbers of their questions in the list."""
    # An answer has to repeat its question at least, so that a file in another order is noticed.
    for said in answers:
        if said.question_id is not None or said.asked is None:
            raise MalformedFile(
                f"{said.where}: every answer needs a 'question_id', or none has one and each repeats its 'question'"
            )
    if len(questions) != len(answers):
        raise UnmatchedAnswers(
            f"{source}: {len(answers)} answers without question_id cannot be matched to {len(questions)} questions"
        )
    return dict(enumerate(answers))


def _by_id(questions: Sequence[Question], answers: Sequence[Said]) -> dict[int, Said]:
    """Return the answers, which have ids, by the numbers of their questions in the list."""
    places: dict[ImageId, list[int]] = {}
    for at, question in enumerate(questions):
        # A run calls a question of POPE's files "random/17", because the numbers of the three files are the same.
        for name in (question.question_id, f"{question.split}/{question.question_id}"):
            places.setdefault(name, []).append(at)
    matched: dict[int, Said] = {}
    for said in answers:
        known = places.get(cast(ImageId, said.question_id), [])
        if not known:
            raise UnmatchedAnswers(f"{said.where}: there is no question {said.question_id!r} to this answer")
        if len(known) > 1:
            first, second = (questions[place].where for place in known[:2])
            raise UnmatchedAnswers(
                f"{said.where}: question {said.question_id!r} stands in {first} and in {second}; give one file of"
                " answers for each file of questions, in one order"
            )
        (at,) = known
        if at in matched:
            raise DuplicateQuestion(
                f"{said.where}: question {said.question_id!r} was answered before ({matched[at].where}): keep one"
            )
        matched[at] = said
    return matched


# The published files of 2023 ask about "the imange" wherever they write "an".
_TEMPLATE = re.compile(r"is there an? (.+?) in the im(?:a|an)ge\?")


def asked_objects(text: str) -> set[str]:
    """Return the objects that POPE's questions in a text ask about: {"hot dog"} for "Is there a hot dog in the image?"."""
    return set(_TEMPLATE.findall(text.lower()))


def _check_same(question: Question, said: Said) -> None:
    """Raise `UnmatchedAnswers` if an answer names another picture or another object than its question."""
    if said.image is not None and said.image != question.image:
        raise UnmatchedAnswers(
            f"{said.where}: answers about image {said.image!r}, but question {question.question_id!r} ({question.where}) is"
            f" about image {question.image!r}"
        )
    if said.asked is None:
        return
    wanted, asked = asked_objects(question.text), asked_objects(said.asked)
    if wanted and asked:
        # The line may repeat a whole prompt, in which other questions stand as well.
        same = wanted <= asked
    else:  # another wording on one side or both
        same = all(name in said.asked.lower() for name in wanted or {question.text.lower().strip()})
    if not same:
        raise UnmatchedAnswers(
            f"{said.where}: answers {short(said.asked)}, but question {question.question_id!r} ({question.where}) is"
            f" {short(question.text)}: are these the answers to another split?"
        )
