"""Match answers to their questions."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from keepsight.eval.answer_shapes import VLMEVALKIT, Shape, repeat_labels
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile, UnmatchedAnswers
from keepsight.eval.image_ids import ImageId
from keepsight.eval.json_files import short
from keepsight.eval.pope.answer_parsers import Answer
from keepsight.eval.pope.files import (
    AnswerFile,
    Question,
    Said,
    read_answer_file,
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
        questions: for each split, all questions, answered or not.
        files: the files of answers, with the form in which each was read.
        matched: what the answers were matched by: "id", "order" or "picture" (and the question's text); "own" where the
            files of answers hold their questions.
        checked: number of answers that repeat their question or name their picture, and were held to it. Ids alone would let
            answers to one of POPE's splits pass for answers to another.
        pictures_known: whether every question names its picture. Where one does not, every question counts as a picture of
            its own, which makes intervals too narrow.
    """

    replies: Mapping[str, tuple[Reply, ...]]
    failed: Mapping[str, int]
    missing: Mapping[str, int]
    questions: Mapping[str, tuple[Question, ...]] = field(default_factory=dict, compare=False)
    files: tuple[AnswerFile, ...] = field(default=(), compare=False)
    matched: str = "id"
    checked: int = field(default=0, compare=False)
    pictures_known: bool = True

    @property
    def repeats_labels(self) -> bool:
        """Whether every answer is the word of its label; see `answer_shapes.repeat_labels`."""
        return repeat_labels(
            (reply.answer, reply.label) for group in self.replies.values() for reply in group
        )


def match_files(
    answers: Sequence[Path],
    questions: Sequence[Path] = (),
    *,
    method: str | None = None,
    partial: bool = False,
    answer_key: str | None = None,
    image_key: str | None = None,
) -> Joined:
    """Read files of answers and of questions, and match every answer to its question.

    Args:
        answers: one file for each file of questions, in the same order, or one file that answers all questions.
        questions: the files of questions. Without any, each line of the answers has to hold its own question and label.
        method: the method whose answers are kept, as in `read_answer_file`.
        partial: whether questions may lack an answer, as in `join`. A split in which no question has an answer is then
            left out of the replies.
        answer_key: the key of the model's answers, as in `read_answer_file`.
        image_key: the key of the picture in the answers, as in `read_answer_file`.

    Raises:
        UnmatchedAnswers: the numbers of files do not fit, or an answer and a question do not, as in `join`.
        DuplicateQuestion: two files hold the same split, or a question or an answer comes twice.
        EmptyFile: a file is empty, or all answers to a split failed.
        AmbiguousKeys: it is not known which key of a file holds the answers.
        MalformedFile: a file does not have the documented form.
    """
    if questions and len(answers) not in (1, len(questions)):
        raise UnmatchedAnswers(
            f"{len(answers)} files of answers and {len(questions)} of questions: give one file of answers for each file"
            " of questions, in one order, or a single one that answers all"
        )
    files = [
        read_answer_file(path, method=method, answer_key=answer_key, image_key=image_key) for path in answers
    ]
    if not questions:
        return _gathered([_own(file, name) for file, name in zip(files, split_names(answers), strict=True)])
    asked = [read_questions(path, name) for path, name in zip(questions, split_names(questions), strict=True)]
    # A single file of answers has to be matched to all questions at once: matched to one file of questions after the other,
    # most of its answers would belong to no question.
    if len(files) == 1:
        return _gathered([_matched(asked, files[0], partial)])
    return _gathered([_matched([ask], file, partial) for ask, file in zip(asked, files, strict=True)])


def _matched(asked: Sequence[Sequence[Question]], file: AnswerFile, partial: bool) -> Joined:
    """Return the answers of one file matched to one or several files of questions."""
    if file.shape.writer == VLMEVALKIT:
        questions = [question for group in asked for question in group]
        found = _by_picture(questions, file)
        joined = _collected(questions, found, source=str(file.path), partial=partial, matched_by="picture")
    else:
        joined = _joined(asked, file.said, source=str(file.path), partial=partial)
    return replace(joined, files=(file,))


def _gathered(parts: Sequence[Joined]) -> Joined:
    """Return the splits of all files together."""
    replies: dict[str, tuple[Reply, ...]] = {}
    failed: dict[str, int] = {}
    missing: dict[str, int] = {}
    questions: dict[str, tuple[Question, ...]] = {}
    for joined in parts:
        path = joined.files[0].path
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
            questions[split] = joined.questions[split]
            if group:
                replies[split] = group
    return Joined(
        replies=replies,
        failed=failed,
        missing=missing,
        questions=questions,
        files=tuple(file for joined in parts for file in joined.files),
        matched=parts[0].matched,
        checked=sum(joined.checked for joined in parts),
        pictures_known=all(joined.pictures_known for joined in parts),
    )


def _own(file: AnswerFile, name: str) -> Joined:
    """Return the answers of a file that also holds its questions and labels.

    Args:
        file: the answers.
        name: the split of lines that name none.
    """
    pairs = [
        (said, _own_question(said, number, split, file.shape))
        for number, said in enumerate(file.said, start=1)
        for split in said.splits or (name,)
    ]
    joined = _collected(
        [question for _, question in pairs],
        {at: said for at, (said, _) in enumerate(pairs)},
        source=str(file.path),
        partial=False,
        matched_by="own",
    )
    return replace(joined, files=(file,), pictures_known=all(said.image is not None for said in file.said))


def _own_question(said: Said, number: int, split: str, shape: Shape) -> Question:
    """Return the question that a line of answers holds; `number` is its id if it has none."""
    lacks = [
        key or usual
        for key, usual, value in (
            (shape.label, "label", said.label),
            (shape.question, "question", said.asked),
        )
        if value is None
    ]
    if lacks:
        what = "is missing" if lacks[0] not in (shape.label, shape.question) else "is missing or no yes or no"
        raise MalformedFile(
            f"{said.where}: the key {lacks[0]!r} {what} here; where answers hold no questions and labels, give the"
            " questions with --questions"
        )
    question_id = number if said.question_id is None else said.question_id
    return Question(
        question_id=question_id,
        # A question whose picture is not known stands for a picture of its own, the same in all of its splits.
        image=f"question {question_id}" if said.image is None else said.image,
        text=cast(str, said.asked),
        label=cast(Answer, said.label),
        split=split,
        where=said.where,
    )


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
    first, second = (replace(side, replies=replies) for replies, side in zip(kept, (a, b), strict=True))
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
    return _joined([questions], answers, source=source, partial=partial)


MOST_ORDERED = 4
"""The most files of questions whose order in one file of answers is found by trying all orders."""
_NEEDS = "every answer needs a 'question_id', or none has one and each repeats its 'question'"


def _joined(
    asked: Sequence[Sequence[Question]], answers: Sequence[Said], *, source: str, partial: bool
) -> Joined:
    """Match every answer to its question, as `join` does; `asked` holds the questions of each file of questions."""
    questions = [question for group in asked for question in group]
    numbered = [said.question_id is not None for said in answers]
    if not all(numbered):
        if any(numbered):
            raise MalformedFile(f"{answers[numbered.index(False)].where}: {_NEEDS}")
        matched = _by_order(asked, answers, source, partial)
        by = "order"
    elif len(asked) > 1 and _run_through(questions, answers):
        # LLaVA numbers the questions of all three files as one, in an order of the files that nothing but the texts tells.
        in_order = sorted(answers, key=lambda said: cast(int, said.question_id))
        matched = _by_order(asked, in_order, source, partial)
        by = "order"
    else:
        try:
            matched = _by_id(questions, answers)
        except UnmatchedAnswers as error:
            if len(asked) == 1 or len(answers) == len(questions):
                raise
            raise UnmatchedAnswers(
                f"{error}; a file whose ids run through all files of questions has to answer all {len(questions)}, and this"
                f" one holds {len(answers)} answers (LLaVA's 8910 are to POPE's files of 2023, not to today's 9000)"
            ) from error
        by = "id"
    return _collected(questions, matched, source=source, partial=partial, matched_by=by)


def _collected(
    questions: Sequence[Question],
    matched: Mapping[int, Said],
    *,
    source: str,
    partial: bool,
    matched_by: str,
) -> Joined:
    """Return the answers by splits, once it is checked that they fit.

    Args:
        questions: the questions.
        matched: the answers by the places of their questions.
        source: what an error calls the answers.
        partial: whether questions may lack an answer.
        matched_by: what `Joined.matched` says.

    Raises:
        UnmatchedAnswers: an answer repeats another question or names another picture, a question has no answer, or the
            answers are themselves questions.
    """
    for at, said in matched.items():
        if why := _differs(questions[at], said):
            raise UnmatchedAnswers(why)
    missing = [question for at, question in enumerate(questions) if at not in matched]
    if missing and not partial:
        raise UnmatchedAnswers(
            f"{source}: {len(missing)} of {len(questions)} questions have no answer, first"
            f" {missing[0].question_id!r} of {missing[0].where}; to score the rest alone: --partial (partial=True)"
        )
    _refuse_echoes(questions, matched, source)
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
        questions={
            split: tuple(question for question in questions if question.split == split) for split in splits
        },
        matched=matched_by,
        checked=sum(said.asked is not None or said.image is not None for said in matched.values()),
    )


_VERDICT = re.compile(r"\W*(?:yes|no)\b")


def _refuse_echoes(questions: Sequence[Question], matched: Mapping[int, Said], source: str) -> None:
    """Raise `UnmatchedAnswers` if every answer is its own question, perhaps with a request of how to answer."""
    pairs = [
        (questions[at].text.strip().lower(), said.answer.strip().lower())
        for at, said in matched.items()
        if said.answer is not None
    ]
    if pairs and all(
        asked and answer.startswith(asked) and not _VERDICT.match(answer[len(asked) :])
        for asked, answer in pairs
    ):
        raise UnmatchedAnswers(
            f"{source}: every answer is the question itself: this is a file of questions, or another key holds the answers"
            " (--answer-key)"
        )


def _by_order(
    asked: Sequence[Sequence[Question]], answers: Sequence[Said], source: str, partial: bool
) -> dict[int, Said]:
    """Return the answers, which stand in the order of the questions, by the places of these.

    Where there are several files of questions, the answers follow one file after the other. In which order the files come
    is told by the questions that the answers repeat.
    """
    # An answer has to repeat its question at least, so that a file in another order is noticed.
    for said in answers:
        if said.asked is None:
            raise MalformedFile(f"{said.where}: {_NEEDS}")
    total = sum(map(len, asked))
    if len(answers) > total or (len(answers) < total and (not partial or len(asked) > 1)):
        raise UnmatchedAnswers(
            f"{source}: {len(answers)} answers without question_id cannot be matched to {total} questions in order"
            + (
                "; if they are the first ones, score them alone: --partial (partial=True)"
                if len(answers) < total
                else ""
            )
        )
    starts = [sum(len(group) for group in asked[:at]) for at in range(len(asked))]
    found: list[dict[int, Said]] = []
    orders = itertools.permutations(range(len(asked))) if len(asked) <= MOST_ORDERED else [range(len(asked))]
    questions = [question for group in asked for question in group]
    for order in orders:
        places = [place for at in order for place in range(starts[at], starts[at] + len(asked[at]))]
        pairs = list(zip(places, answers, strict=False))
        # With one file the caller names the first answer that does not fit.
        if len(asked) == 1 or not any(_differs(questions[place], said) for place, said in pairs):
            found.append(dict(pairs))
    if len(found) == 1:
        return found[0]
    if found:
        raise UnmatchedAnswers(
            f"{source}: the answers fit the files of questions in {len(found)} orders; give one file of answers for each"
            " file of questions"
        )
    first = next(
        why for place, said in enumerate(answers) if (why := _differs(questions[place], said)) is not None
    )
    raise UnmatchedAnswers(
        f"{source}: answers to {len(asked)} files of questions in a row fit these files in no order: {first}"
    )


def _run_through(questions: Sequence[Question], answers: Sequence[Said]) -> bool:
    """Return whether the ids of the answers number the questions of several files as one.

    POPE numbers the questions of each file from 1. Ids that belong to no question, or to questions of several files, while
    there are as many answers as questions, are those of a file like LLaVA's.
    """
    if len(answers) != len(questions) or not all(isinstance(said.question_id, int) for said in answers):
        return False
    names = Counter(question.question_id for question in questions)
    return any(names[cast(int, said.question_id)] != 1 for said in answers)


def _by_picture(questions: Sequence[Question], file: AnswerFile) -> dict[int, Said]:
    """Return the answers by the places of the questions that have their picture and their text.

    VLMEvalKit asks a question of several splits once, and numbers the questions in its own way.
    """
    places: dict[tuple[ImageId, str], list[int]] = {}
    for at, question in enumerate(questions):
        places.setdefault((question.image, bare_question(question.text)), []).append(at)
    matched: dict[int, Said] = {}
    for said in file.said:
        if said.image is None or said.asked is None:
            raise MalformedFile(
                f"{said.where}: VLMEvalKit's index is not the id of POPE's question, and the line names no picture: leave"
                " --questions out to score with the labels of the file, or name the key of the picture with --image-key"
            )
        known = places.get((said.image, bare_question(said.asked)), [])
        # A category that is no split of the questions says nothing about which of them is meant.
        named = [at for at in known if questions[at].split in said.splits]
        if not known:
            raise UnmatchedAnswers(
                f"{said.where}: there is no question {short(said.asked)} about image {said.image!r} to this answer"
            )
        for at in named or known:
            if at in matched:
                raise DuplicateQuestion(
                    f"{said.where}: {short(said.asked)} about image {said.image!r} was answered before"
                    f" ({matched[at].where}): keep one"
                )
            matched[at] = said
    return matched


def bare_question(text: str) -> str:
    """Return what a question asks about if it is POPE's, else the question without white space around it."""
    objects = asked_objects(text)
    return objects.pop() if len(objects) == 1 else text.strip().lower()


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


def _differs(question: Question, said: Said) -> str | None:
    """Return why an answer is not one to this question, if it names another picture or another object; else None."""
    if said.image is not None and said.image != question.image:
        return (
            f"{said.where}: answers about image {said.image!r}, but question {question.question_id!r} ({question.where}) is"
            f" about image {question.image!r}"
        )
    if said.asked is None:
        return None
    wanted, asked = asked_objects(question.text), asked_objects(said.asked)
    if wanted and asked:
        # The line may repeat a whole prompt, in which other questions stand as well.
        same = wanted <= asked
    else:  # another wording on one side or both
        same = all(name in said.asked.lower() for name in wanted or {question.text.lower().strip()})
    if same:
        return None
    return (
        f"{said.where}: answers {short(said.asked)}, but question {question.question_id!r} ({question.where}) is"
        f" {short(question.text)}: are these the answers to another split?"
    )
