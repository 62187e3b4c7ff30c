"""Read files of yes-or-no questions and files of answers to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from keepsight.errors import InputError, did_you_mean
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile
from keepsight.eval.image_ids import ImageId, image_id
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
        question_id: the id of the question; None in POPE's own form, where the order of the lines counts.
        answer: the text of the answer; None where the model failed to answer.
        asked: the question if the line repeats it, perhaps inside a prompt; else None.
        image: the picture if the line names it; else None.
        method: the method that gave the answer if the line names it; else None.
        where: file and line of the answer.
    """

    question_id: ImageId | None
    answer: str | None
    asked: str | None
    image: ImageId | None
    method: str | None
    where: str


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


def read_answers(path: str | Path, *, method: str | None = None) -> list[Said]:
    """Read the answers of a file and return them in its order.

    The file holds JSON lines, or a JSON list, of objects with

    - `question_id` and `text` (LLaVA, VCD and code derived from them) or `question_id` and `answer`;
    - `question` and `answer` without ids (POPE's own form), which are matched by their order and their text; or
    - `id` and `answer`, as a run of Keepsight writes them; a line whose `error` is not null is a failure.

    A question that failed and was answered in another line counts as answered.

    Args:
        path: the file.
        method: the method whose answers are kept; None keeps all, which must then be of one method.

    Raises:
        EmptyFile: the file holds no answer (of that method).
        MalformedFile: the file is not in one of these forms; the message names file and line.
        DuplicateQuestion: a question is answered twice, or by several methods while none was chosen.
    """
    path = Path(path)
    said = [_said(entry, where) for where, entry in read_entries(read_text(path), path)]
    found = [one for one in said if method is None or one.method == method]
    if not said:
        raise EmptyFile(f"{path}: holds no answer")
    if not found:
        methods = sorted({one.method for one in said if one.method is not None})
        hint = did_you_mean(str(method), methods) if methods else "no line names a method"
        raise EmptyFile(f"{path}: holds no answer by the method {method!r}; {hint}")
    return _once(found, path)


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


def _said(entry: Any, where: str) -> Said:
    """Return the answer of one entry of the file."""
    if not isinstance(entry, dict):
        raise MalformedFile(
            f"{where}: an object with 'question_id' and 'answer' was expected, not {short(entry)}"
        )
    failed = entry.get("error") is not None
    # POPE calls the text of a question "text", as LLaVA does the text of an answer. A file of questions that is given as
    # answers would be scored on its own questions, unless it is recognised by its labels.
    is_question = "label" in entry and "answer" not in entry and not {"text", "question"} <= entry.keys()
    if is_question and not failed:
        raise MalformedFile(f"{where}: is a question with its label, not an answer: give it with --questions")
    key = "text" if "text" in entry and "answer" not in entry else "answer"
    answer = None if failed else as_text(require(entry, key, where), key, where)
    number = entry.get("question_id", entry.get("id"))
    asked = entry.get("question", entry.get("prompt"))
    image = entry.get("image", entry.get("image_id"))
    method = entry.get("method")
    return Said(
        question_id=None if number is None else _identifier(number, where),
        answer=answer,
        asked=None if asked is None else as_text(asked, "question", where),
        image=None if image is None else _image(image, where),
        method=None if method is None else as_text(method, "method", where),
        where=where,
    )


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
