"""Read files of yes-or-no questions and files of answers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from keepsight.errors import InputError, did_you_mean
from keepsight.eval.answer_shapes import (
    LMMS_EVAL,
    PAI,
    YES_NO,
    Entries,
    Form,
    Shape,
    check_key,
    choose,
    could_be_words,
    failed,
    read_answer_entries,
    value_of,
)
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile
from keepsight.eval.image_ids import ImageId, image_id, whole_number
from keepsight.eval.json_files import as_text, read_entries, read_text, require, short
from keepsight.eval.pope.answer_parsers import Answer

KINDS = ("random", "popular", "adversarial")
"""POPE's three ways of choosing absent objects; the questions of a file with one of them in its name are that split."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A yes-or-no question.

    Attributes:
        question_id: the id of the question, unique in its split.
        image: the picture asked about.
        text: the question in words.
        label: the right answer.
        split: the group of questions that it is scored with, such as "popular".
        where: file and line of the question.
    """

    question_id: ImageId
    image: ImageId
    text: str
    label: Answer
    split: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Said:
    """One line of a file of answers.

    Attributes:
        question_id: the id of the question; None in forms without ids, where the order of the lines counts.
        answer: the text of the answer; None where the model failed to answer.
        asked: the question if the line repeats it, perhaps inside a prompt; else None.
        image: the picture if the line names it; else None.
        method: the method that gave the answer if the line names it; else None.
        where: file and line of the answer.
        label: the right answer if the line holds it; else None.
        splits: the splits that the line says the question belongs to.
    """

    question_id: ImageId | None
    answer: str | None
    asked: str | None
    image: ImageId | None
    method: str | None
    where: str
    label: Answer | None = None
    splits: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnswerFile(Form):
    """The answers of a file in its order (lmms-eval: that of its data set), and the form in which they were found."""

    said: tuple[Said, ...]


def read_questions(path: str | Path, split: str | None = None) -> list[Question]:
    """Read the questions of a file and return them in its order.

    The file holds JSON lines, or a JSON list, of objects in POPE's form `{"question_id", "image", "text", "label"}`
    (other writers call the text "question"), or it is the `items.jsonl` of a run of Keepsight.

    Args:
        path: the file.
        split: the split of questions that do not name one as "split" or "category"; by default `split_of(path)`.

    Raises:
        EmptyFile: the file holds no question.
        MalformedFile: the file is not in this form, or a label is not yes or no; the message names file and line.
        DuplicateQuestion: a question_id comes twice in a split.
    """
    path = Path(path)
    name = split or split_of(path)
    found = [_question(entry, where, name) for where, entry in read_entries(read_text(path), path)]
    if not found:
        raise EmptyFile(f"{path}: holds no question")
    first: dict[tuple[str, ImageId], Question] = {}
    for question in found:
        known = first.setdefault((question.split, question.question_id), question)
        if known is not question:
            raise DuplicateQuestion(
                f"{question.where}: question {question.question_id!r} stands in {known.where} already: keep one"
            )
    return found


def read_answers(
    path: str | Path,
    *,
    method: str | None = None,
    answer_key: str | None = None,
    image_key: str | None = None,
) -> list[Said]:
    """Return the answers that `read_answer_file` finds."""
    return list(read_answer_file(path, method=method, answer_key=answer_key, image_key=image_key).said)


def read_answer_file(
    path: str | Path,
    *,
    method: str | None = None,
    answer_key: str | None = None,
    image_key: str | None = None,
) -> AnswerFile:
    """Read the answers of a file.

    The file holds JSON lines, a JSON list, or the rows of a workbook (.xlsx), in one of the forms of
    `answer_shapes.YES_NO`. A file of another form is read if only one of its keys could hold the answers, or if the key is
    named. A question that failed and was answered in another line counts as answered.

    Args:
        path: the file.
        method: the method whose answers are kept; None keeps all, which must then be of one method.
        answer_key: the key of the model's answers; by default the form of the file decides.
        image_key: the key that names the picture; by default the form of the file decides.

    Raises:
        EmptyFile: the file holds no answer (of that method).
        AmbiguousKeys: several keys could hold the answers, and the form of the file is not known.
        MalformedFile: the file is not in one of these forms, or lacks a key that was named; the message names the place.
        DuplicateQuestion: a question is answered twice, or by several methods while none was chosen.
        MissingData: the file is a workbook, and openpyxl is not installed.
    """
    path = Path(path)
    entries = read_answer_entries(path)
    if not entries:
        raise EmptyFile(f"{path}: holds no answer")
    if answer_key is None:
        _refuse_questions(entries)
    shape = choose(entries, YES_NO, path, key=answer_key)
    if image_key is not None:
        check_key(image_key, entries, path, "--image-key")
        shape = replace(shape, image=(image_key,))
    said = [_said(entry, shape, where) for where, entry in entries]
    if shape.writer == LMMS_EVAL:
        said = _in_order_of_the_data_set(entries, said)
    found = [one for one in said if method is None or one.method == method]
    if not found:
        methods = sorted({one.method for one in said if one.method is not None})
        hint = did_you_mean(str(method), methods) if methods else "no line names a method"
        raise EmptyFile(f"{path}: holds no answer by the method {method!r}; {hint}")
    return AnswerFile(path=path, shape=shape, said=tuple(_once(found, path)))


def split_of(path: Path) -> str:
    """Return the one of POPE's kinds that is part of the file's name, else the name without its ending."""
    kinds = [kind for kind in KINDS if kind in path.stem.lower()]
    return kinds[0] if len(kinds) == 1 else path.stem


def split_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the split of each file: `split_of` if these all differ, else the stems if they do, else paths."""
    for names in ([split_of(path) for path in paths], [path.stem for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _question(entry: Any, where: str, split: str) -> Question:
    """Return the question of one entry of the file; `split` is for entries that name none."""
    facts = entry.get("truth") if isinstance(entry, dict) else None
    if isinstance(facts, dict):
        entry = {**facts, **entry}  # the items of a run keep the label and what belongs to it under `truth`
    number = _identifier(_either(entry, "question_id", "id", where), where)
    image = _either(entry, "image", "image_id", where)
    # A file of answers that repeats its questions calls the question "question" and the answer "text".
    text = entry["question"] if "question" in entry else require(entry, "text", where)
    label = require(entry, "label", where)
    spoken = label.strip().lower() if isinstance(label, str) else None
    if spoken not in ("yes", "no"):
        raise MalformedFile(f"{where}: 'label' must be yes or no, not {short(label)}")
    given = entry.get("split", entry.get("category"))
    return Question(
        question_id=number,
        image=_image(image, where),
        text=as_text(text, "text", where),
        label=cast(Answer, spoken),
        split=split if given is None else as_text(given, "split", where),
        where=where,
    )


def _either(entry: Any, key: str, other: str, where: str) -> Any:
    """Return the value of `key`, or of `other`, which is what other writers call it."""
    return (
        entry[other]
        if isinstance(entry, dict) and key not in entry and other in entry
        else require(entry, key, where)
    )


def _refuse_questions(entries: Entries) -> None:
    """Raise `MalformedFile` if the entries are questions with their labels, and no answers.

    POPE calls the text of a question "text", as LLaVA does the text of an answer. A file of questions that is given as
    answers would be scored on its own questions, unless it is recognised by its labels.
    """
    keys = {key for _, entry in entries if isinstance(entry, dict) for key in entry}
    if {"text", "label"} <= keys and not keys & {"answer", "question", "prompt", "query", "error"}:
        where = entries[0][0]
        words = [key for key in keys - {"text"} if could_be_words(key)]
        if not words:
            raise MalformedFile(
                f"{where}: is a question with its label, not an answer: give it with --questions"
            )


def _said(entry: Mapping[str, Any], shape: Shape, where: str) -> Said:
    """Return the answer of one entry of a file of this form."""
    answer = None if failed(entry, shape) else as_text(value_of(entry, shape, where), shape.answer, where)
    number = None if shape.own_ids else entry.get("question_id", entry.get("id"))
    asked = None if shape.question is None else entry.get(shape.question)
    image = next((entry[key] for key in shape.image if entry.get(key) is not None), None)
    method = entry.get("method")
    return Said(
        question_id=None if number is None else _identifier(number, where),
        answer=answer,
        asked=None if asked is None else as_text(asked, shape.question or "question", where),
        image=None if image is None else _image(image, where),
        method=None if method is None else as_text(method, "method", where),
        where=where,
        label=None if shape.label is None else _spoken(entry.get(shape.label), shape),
        splits=_splits(entry),
    )


def _spoken(value: Any, shape: Shape) -> Answer | None:
    """Return a label as yes or no; None if it is neither. PAI and PAINT write 1 and 0."""
    if shape.writer == PAI and value in (0, 1) and not isinstance(value, bool):
        return "yes" if value else "no"
    text = value.strip().lower() if isinstance(value, str) else None
    return cast(Answer, text) if text in ("yes", "no") else None


def _splits(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the splits that an entry names; VLMEvalKit joins those of one question with commas."""
    given = entry.get("split", entry.get("category"))
    names = given.split(",") if isinstance(given, str) else []
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def _in_order_of_the_data_set(entries: Entries, said: list[Said]) -> list[Said]:
    """Return lmms-eval's answers with the ids of their questions, or in the order of its data set.

    The metrics keep the ids of POPE's questions. Its task that holds all three splits has every id three times, so that only
    the order of the data set tells which question a line answers.
    """
    numbers = [_metric_id(entry) for _, entry in entries]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return [
            replace(one, question_id=_identifier(number, one.where))
            for one, number in zip(said, numbers, strict=True)
        ]
    places: dict[ImageId, Said] = {}
    for (where, entry), one in zip(entries, said, strict=True):
        place = _identifier(entry.get("doc_id"), where)
        if not isinstance(place, int):
            raise MalformedFile(f"{where}: 'doc_id' must be a whole number, not {short(place)}")
        if place in places:
            raise DuplicateQuestion(
                f"{where}: doc_id {place} was answered before ({places[place].where}): keep one"
            )
        places[place] = one
    return [places[place] for place in sorted(places, key=int)]


def _metric_id(entry: Mapping[str, Any]) -> Any:
    """Return the id of the question that lmms-eval's metrics of POPE keep; None if there is none."""
    for value in entry.values():
        if isinstance(value, dict) and isinstance(value.get("question_id"), int | str):
            return value["question_id"]
    return None


def _once(answers: Iterable[Said], path: Path) -> list[Said]:
    """Return the answers without failures that another line makes up for; raise `DuplicateQuestion` for two answers."""
    kept: list[Said] = []
    place: dict[ImageId, int] = {}
    for said in answers:
        if said.question_id is None:
            kept.append(said)
            continue
        # The first line of a question keeps its place, so that a later answer stands where the failure stood.
        at = place.setdefault(said.question_id, len(kept))
        if at == len(kept):
            kept.append(said)
            continue
        known = kept[at]
        if known.method != said.method:
            methods = ", ".join(sorted({repr(one.method) for one in (known, said)}))
            raise DuplicateQuestion(
                f"{path}: holds answers of several methods ({methods}); choose one with --method (method=)"
            )
        if known.answer is not None and said.answer is not None:
            raise DuplicateQuestion(
                f"{said.where}: question {said.question_id!r} was answered before ({known.where}): keep one"
            )
        if known.answer is None:  # otherwise the later line is the failure, and the answer stays
            kept[at] = said
    return kept


def _identifier(value: Any, where: str) -> ImageId:
    """Return an id: whole numbers as int, also if written as text; other texts without white space around them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and (whole := whole_number(value)) is not None:
        return whole
    text = as_text(value, "question_id", where).strip()
    if not text:
        raise MalformedFile(f"{where}: 'question_id' is empty")
    # `image_ids.image_id` says why only ASCII digits, and fewer than 20 of them, are a number.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text


def _image(value: Any, where: str) -> ImageId:
    """Return the id of an image, or raise `MalformedFile` naming the place."""
    try:
        return image_id(as_text(value, "image", where) if isinstance(value, str) else value)
    except MalformedFile:  # raised by `as_text`, and names the place already
        raise
    except InputError as error:
        raise MalformedFile(f"{where}: {error}") from error
