"""Read BEAF's questions and match answers to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile, UnmatchedAnswers
from keepsight.eval.image_ids import ImageId, image_id
from keepsight.eval.json_files import check_utf8, read_entries, read_text, require, short
from keepsight.eval.pope.answer_parsers import Answer
from keepsight.eval.pope.files import Said

# The look-behind keeps a name that begins with its dot, such as ".jpg", from losing all of itself.
_ENDING = re.compile(r"(?<=[^./\\\\])\.[^./\\\\]*\Z")
_EDITED = re.compile(r"(.+)_\d{2}", re.DOTALL)


class MissingOriginal(MalformedFile):
    """An edited picture's original, or the same question about it, is not in the file."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about an original picture or about an edited one, from which an object was removed.

    Attributes:
        id: the id of the question, unique in the file.
        image: the file name of the picture.
        original: what an original and all its edits share: the file name of the original without its ending.
        text: the question in words.
        label: the right answer, "yes" or "no".
        edited: whether an object was removed from this picture.
        removable: whether the object asked about is removed in some edit of the original (BEAF's "removed_q").
        where: file and line of the question.
    """

    id: ImageId
    image: str
    original: str
    text: str
    label: Answer
    edited: bool
    removable: bool
    where: str


def read_questions(path: str | Path) -> list[Question]:
    """Read the questions of a file and return them in its order.

    The file is BEAF's `beaf_qna.json`, the same as JSON lines, or the `items.jsonl` of a run of Keepsight: objects of
    `id`, `image`, `question`, `orig_img`, `removed_q` and `gt` (a run keeps the last three under `truth`, and calls the
    answer `label`). An edited picture has the name of its original with `_` and two digits before the ending; the two
    endings may differ.

    Raises:
        EmptyFile: the file holds no question.
        MalformedFile: the file is not in this form, or a right answer is not yes or no; the message names file and line.
        DuplicateQuestion: an id, or a question about a picture, comes twice.
        MissingOriginal: a question about an edited picture is not asked about its original.
    """
    path = Path(path)
    found = [_question(entry, where) for where, entry in read_entries(read_text(path), path)]
    if not found:
        raise EmptyFile(f"{path}: holds no question")
    ids: dict[ImageId, Question] = {}
    asked: dict[tuple[bool, str, str], Question] = {}
    for one in found:
        known = ids.setdefault(one.id, one)
        if known is not one:
            raise DuplicateQuestion(
                f"{one.where}: question {one.id!r} stands in {known.where} already: keep one"
            )
        # Originals are compared by their names without the ending, since edits refer to them by it: photo.jpg and photo.png
        # would both be the original of photo_00.png.
        known = asked.setdefault((one.edited, one.image if one.edited else one.original, one.text), one)
        if known is not one:
            raise DuplicateQuestion(
                f"{one.where}: {short(one.text)} about {one.image} stands in {known.where} already: keep one"
            )
    originals(found)  # called for the error that it raises where an original is missing
    return found


def originals(questions: Sequence[Question]) -> Mapping[ImageId, Question]:
    """Return, by the id of every question about an edited picture, the same question about the original.

    Raises:
        MissingOriginal: the original is not in the file, or the file does not ask the same question about it.
    """
    asked = {(one.original, one.text): one for one in questions if not one.edited}
    pictures = {one.original for one in questions if not one.edited}
    pairs: dict[ImageId, Question] = {}
    for one in questions:
        if not one.edited:
            continue
        twin = asked.get((one.original, one.text))
        if twin is None:
            lacks = (
                f"the file does not ask {short(one.text)} about its original, {one.original}"
                if one.original in pictures
                else f"its original, {one.original}, is not in the file"
            )
            raise MissingOriginal(f"{one.where}: {one.image} is an edited picture, but {lacks}")
        pairs[one.id] = twin
    return pairs


def match(
    questions: Sequence[Question], answers: Sequence[Said], *, source: str = "answers", partial: bool = False
) -> Mapping[ImageId, str | None]:
    """Return the answer to each question by the question's id, or None where the model failed.

    Args:
        questions: as `read_questions` returns them.
        answers: as `pope.files.read_answers` returns them. An answer that repeats its question or names its picture has
            to repeat or name the right one.
        source: what an error calls the answers, such as their file.
        partial: whether questions may lack an answer; such questions are left out of the result.

    Raises:
        UnmatchedAnswers: an answer belongs to no question or to another one, or a question has no answer.
        MalformedFile: an answer has no id.
    """
    known = {one.id: one for one in questions}
    found: dict[ImageId, str | None] = {}
    for said in answers:
        if said.question_id is None:
            raise MalformedFile(f"{said.where}: the key 'id' is missing: BEAF's answers are matched by it")
        one = known.get(said.question_id)
        if one is None:
            raise UnmatchedAnswers(f"{said.where}: there is no question {said.question_id!r} to this answer")
        # Writers of answers name a picture with or without the ending of its file.
        names = {image_id(one.image), image_id(_stem(one.image))}
        if said.image is not None and said.image not in names:
            raise UnmatchedAnswers(
                f"{said.where}: answers about image {said.image!r}, but question {one.id!r} ({one.where}) is about"
                f" {one.image}"
            )
        # The question may stand inside a prompt, so that it only has to be part of what the line repeats.
        if said.asked is not None and one.text.strip().lower() not in said.asked.lower():
            raise UnmatchedAnswers(
                f"{said.where}: answers {short(said.asked)}, but question {one.id!r} ({one.where}) is {short(one.text)}"
            )
        found[one.id] = said.answer
    missing = [one for one in questions if one.id not in found]
    if missing and not partial:
        raise UnmatchedAnswers(
            f"{source}: {len(missing)} of {len(questions)} questions have no answer, first {missing[0].id!r} of"
            f" {missing[0].where}; to score the rest alone: --partial (partial=True)"
        )
    return found


def _question(entry: Any, where: str) -> Question:
    """Return the question of one entry of the file."""
    facts = entry.get("truth") if isinstance(entry, dict) else None
    if isinstance(facts, dict):
        # The items of a run keep the right answer, and what belongs to it, under `truth`.
        entry = {**entry, **facts}
    number = require(entry, "id", where)
    image = _text(entry, "image", where)
    label = entry["gt"] if "gt" in entry else entry.get("label")
    spoken = label.strip().lower() if isinstance(label, str) else None
    if spoken not in ("yes", "no"):
        # A missing key has an error of its own, which `require` raises.
        require(entry, "gt" if "label" not in entry else "label", where)
        raise MalformedFile(f"{where}: the right answer ('gt') must be yes or no, not {short(label)}")
    # The file says whether a picture is an edit, since the name of an original may end in _ and two digits, too.
    edited = not _flag(entry, "orig_img", where)
    stem = _stem(image)
    cut = _EDITED.fullmatch(stem)
    if edited and cut is None:
        raise MalformedFile(
            f"{where}: {short(image)} is an edited picture, but its name does not end in _ and two digits, as in"
            " photo_00.png for photo.jpg"
        )
    return Question(
        id=_identifier(number, where),
        image=image,
        original=cut.group(1) if edited and cut is not None else stem,
        text=_text(entry, "question", where),
        label=cast(Answer, spoken),
        edited=edited,
        removable=_flag(entry, "removed_q", where),
        where=where,
    )


def _stem(image: str) -> str:
    """Return the file name without its ending; folders in front of it stay."""
    return _ENDING.sub("", image)


def _identifier(value: Any, where: str) -> ImageId:
    """Return an id as `pope.files.read_answers` does, whose answers are matched by it: digits become an int."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip():
        raise MalformedFile(f"{where}: 'id' is a whole number or a text, not {short(value)}")
    text = value.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text


def _text(entry: Any, key: str, where: str) -> str:
    """Return the text under a key, or raise `MalformedFile` if it is missing, blank or not text."""
    value = require(entry, key, where)
    if not isinstance(value, str) or not value.strip():
        raise MalformedFile(f"{where}: {key!r} must be a text that is not empty, not {short(value)}")
    check_utf8(value, key, where)
    return value


def _flag(entry: Any, key: str, where: str) -> bool:
    """Return the truth value under a key, or raise `MalformedFile` if it is missing or something else."""
    value = require(entry, key, where)
    if not isinstance(value, bool):
        raise MalformedFile(f"{where}: {key!r} must be true or false, not {short(value)}")
    return value
