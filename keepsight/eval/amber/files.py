"""Read the files that AMBER is scored from: annotations, word relations, safe words, queries and responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from keepsight.eval.answer_shapes import (
    AMBER,
    Form,
    Shape,
    check_key,
    choose,
    failed,
    parts,
    read_answer_entries,
    value_of,
)
from keepsight.eval.errors import DuplicateQuestion, EmptyFile, MalformedFile, UnknownObject
from keepsight.eval.image_ids import whole_number
from keepsight.eval.json_files import as_text, parse_json, read_entries, read_text, require, short
from keepsight.eval.pope.answer_parsers import Answer

TYPES: Mapping[str, str] = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
"""The types of questions by the names that AMBER's files give them; AMBER uses both names of relation questions."""
GENERATIVE = "generative"
"""The type of an annotation of a picture that is to be described."""

_FILE_NAME = re.compile(r"(?:.*[/\\])?AMBER_(\d{1,9})(?:\.\w+)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Description:
    """The annotation of a picture that is to be described.

    Attributes:
        id: the id of the annotation, to which the response refers.
        truth: the objects that are in the picture.
        hallu: objects that are not in the picture, but that models tend to imagine in it.
        where: file and entry of the annotation.
    """

    id: int
    truth: tuple[str, ...]
    hallu: tuple[str, ...]
    where: str


@dataclass(frozen=True, kw_only=True)
class YesNo:
    """The annotation of a yes-or-no question.

    Attributes:
        id: the id of the annotation, to which the answer refers.
        type: existence, state, number, action or relation.
        label: the right answer.
        where: file and entry of the annotation.
    """

    id: int
    type: str
    label: Answer
    where: str


Annotation = Description | YesNo


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """AMBER's lists of words.

    Attributes:
        relations: for each name of an object, the words that count as the same object or as a part of it.
        safe: words that are never judged.
        known: all words of `relations`, keys and values; other nouns are not taken for objects.
    """

    relations: Mapping[str, tuple[str, ...]]
    safe: frozenset[str]
    known: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response of a model to an annotation's prompt; `text` is None where the model failed."""

    id: int
    text: str | None
    where: str


@dataclass(frozen=True, kw_only=True)
class ResponseFile:
    """The responses of a file in its order, and the forms in which they were found."""

    forms: tuple[Form, ...]
    responses: tuple[Response, ...]


def read_annotations(path: str | Path) -> dict[int, Annotation]:
    """Read AMBER's `annotations.json` and return the annotations by their ids.

    Raises:
        EmptyFile: the file holds no annotation.
        MalformedFile: the file does not have AMBER's form, a right answer is not yes or no, or a type is unknown; the
            message names file and entry.
        DuplicateQuestion: an id comes twice.
    """
    path = Path(path)
    found: dict[int, Annotation] = {}
    for where, entry in read_entries(read_text(path), path):
        one = _annotation(entry, where)
        if one.id in found:
            raise DuplicateQuestion(f"{where}: id {one.id} stands in {found[one.id].where} already: keep one")
        found[one.id] = one
    if not found:
        raise EmptyFile(f"{path}: holds no annotation")
    return found


def read_lexicon(relations: str | Path, safe_words: str | Path) -> Lexicon:
    """Read AMBER's `relation.json` (which maps words to lists of words) and `safe_words.txt` (one word a line).

    Raises:
        MalformedFile: a file does not have this form.
        EmptyFile: the relations hold no word.
    """
    path = Path(relations)
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, dict):
        raise MalformedFile(f"{path}: an object that maps words to lists of words was expected")
    table = {word: _words(words, f"{path}: {word!r}") for word, words in content.items()}
    if not table:
        raise EmptyFile(f"{path}: holds no word")
    safe = {line.strip() for line in read_text(Path(safe_words)).split("\n")}
    known = {*table, *(word for words in table.values() for word in words)}
    return Lexicon(relations=table, safe=frozenset(safe - {""}), known=frozenset(known))


def check_words(annotations: Mapping[int, Annotation], lexicon: Lexicon) -> None:
    """Raise `UnknownObject` if the relations lack an annotated object, since a noun could then not be related to it."""
    for one in annotations.values():
        if isinstance(one, Description):
            for word in (*one.truth, *one.hallu):
                if word not in lexicon.relations:
                    raise UnknownObject(
                        f"{one.where}: the object {word!r} is no word of the relations: are these AMBER's two files?"
                    )


def read_responses(path: str | Path) -> list[Response]:
    """Return the responses that `read_response_file` finds."""
    return list(read_response_file(path).responses)


def read_response_file(
    path: str | Path, *, answer_key: str | None = None, image_key: str | None = None
) -> ResponseFile:
    """Read the responses of a file.

    The file is a JSON list, or JSON lines, in one of the forms of `answer_shapes.AMBER`: objects with `id` and `response`
    (AMBER's own) or `answer`, where an entry whose `error` is not null is a failure; what `keepsight caption --json` writes
    about pictures called AMBER_7.jpg; or VDGD's answers to AMBER, which are numbered from 0 and therefore known by their
    pictures. A picture tells the id of its description alone, since several questions are about it.

    Args:
        path: the file.
        answer_key: the key of the responses; by default the form of the file decides.
        image_key: the key of the pictures, which then give the ids; by default the form of the file decides.

    Raises:
        EmptyFile: the file holds no response.
        AmbiguousKeys: several keys could hold the responses, and the form of the file is not known.
        MalformedFile: the file is not in one of these forms; the message names file and entry.
        DuplicateQuestion: an id has two responses, neither of which is a failure.
        MissingData: the file is a workbook, and openpyxl is not installed.
    """
    path = Path(path)
    entries = read_answer_entries(path)
    if not entries:
        raise EmptyFile(f"{path}: holds no response")
    check_key(image_key, entries, path, "--image-key")
    forms: list[Form] = []
    responses: dict[str, Response] = {}
    # Descriptions and answers may stand in one file although different programs wrote them.
    for part in [entries] if answer_key is not None else parts(entries):
        shape = choose(part, AMBER, path, key=answer_key)
        if image_key is not None:
            shape = replace(shape, image=(image_key,), own_ids=True, number=None)
        forms.append(Form(path=path, shape=shape))
        responses |= {where: _response(entry, shape, where) for where, entry in part}
    found: dict[int, Response] = {}
    for where, _ in entries:
        one = responses[where]
        known = found.setdefault(one.id, one)
        if known is one:
            continue
        if known.text is not None and one.text is not None:
            raise DuplicateQuestion(f"{where}: id {one.id} was answered before ({known.where}): keep one")
        if known.text is None:  # a failure that was repeated; a failure after an answer does not replace it
            found[one.id] = one
    return ResponseFile(forms=tuple(forms), responses=tuple(found.values()))


def read_queries(path: str | Path) -> dict[int, str]:
    """Read AMBER's `query_all.json` or `query_discriminative.json` and return the picture of each id.

    Raises:
        EmptyFile: the file holds no query.
        MalformedFile: the file does not have AMBER's form; the message names file and entry.
        DuplicateQuestion: an id comes twice.
    """
    path = Path(path)
    found: dict[int, str] = {}
    for where, entry in read_entries(read_text(path), path):
        number = _id(require(entry, "id", where), where)
        if number in found:
            raise DuplicateQuestion(f"{where}: id {number} comes twice: keep one")
        found[number] = as_text(require(entry, "image", where), "image", where)
    if not found:
        raise EmptyFile(f"{path}: holds no query")
    return found


def _annotation(entry: Any, where: str) -> Annotation:
    """Return the annotation of one entry of the file."""
    number = _id(require(entry, "id", where), where)
    kind = require(entry, "type", where)
    truth = require(entry, "truth", where)
    if kind == GENERATIVE:
        hallu = _words(require(entry, "hallu", where), f"{where}: 'hallu'")
        return Description(id=number, truth=_words(truth, f"{where}: 'truth'"), hallu=hallu, where=where)
    if not isinstance(kind, str) or kind not in TYPES:
        known = ", ".join((GENERATIVE, *TYPES))
        raise MalformedFile(f"{where}: 'type' must be one of {known}, not {short(kind)}")
    if truth not in ("yes", "no"):
        raise MalformedFile(f"{where}: 'truth' of a question must be yes or no, not {short(truth)}")
    return YesNo(id=number, type=TYPES[kind], label=cast(Answer, truth), where=where)


def _response(entry: Mapping[str, Any], shape: Shape, where: str) -> Response:
    """Return the response of one entry of a file of this form."""
    # Pictures have one description each, and AMBER names them by its id; `keepsight caption` and VDGD know no other id.
    by_picture = shape.own_ids or (shape.answer == "caption" and "id" not in entry)
    number = (
        _picture_id(entry, shape, where)
        if by_picture
        else _id(require(entry, shape.number or "id", where), where)
    )
    if failed(entry, shape):
        return Response(id=number, text=None, where=where)
    return Response(id=number, text=as_text(value_of(entry, shape, where), shape.answer, where), where=where)


def _picture_id(entry: Mapping[str, Any], shape: Shape, where: str) -> int:
    """Return the id of the description of the picture that an entry names."""
    image = next((entry[key] for key in shape.image if entry.get(key) is not None), None)
    if image is None:
        require(entry, next((key for key in shape.image if key in entry), shape.image[0]), where)
    name = _FILE_NAME.fullmatch(str(image))
    if name is None:
        raise MalformedFile(
            f"{where}: a caption of {short(image)}, which is not called AMBER_7.jpg or the like"
        )
    asked = next((entry[key] for key in ("pure_input", "query", "question") if key in entry), None)
    if asked is not None and not (isinstance(asked, str) and "describe" in asked.lower()):
        raise MalformedFile(
            f"{where}: answers {short(asked)}; a picture tells the id of its description alone, and several questions are"
            " about it: give answers to questions with AMBER's ids"
        )
    return int(name.group(1))


def _id(value: Any, where: str) -> int:
    """Return an id as int, also if it is written as text; `image_ids.image_id` says why only fewer than 20 ASCII digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, float) and (whole := whole_number(value)) is not None:
        return whole
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedFile(f"{where}: 'id' must be a whole number, not {short(value)}")
    return value


def _words(value: Any, what: str) -> tuple[str, ...]:
    """Return the value as a tuple of words, or raise `MalformedFile`."""
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise MalformedFile(f"{what} must be a list of words, not {short(value)}")
    return tuple(value)
