"""The forms in which programs write a model's answers, and the choice of the key that holds them.

Several programs call the right answer "answer" and the model's words something else. A file in which several keys could hold
the model's words is therefore read only if it has a form that is known here; otherwise it is refused, and the caller names
the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from keepsight.eval.errors import AmbiguousKeys, MalformedFile
from keepsight.eval.json_files import read_entries, read_text, require, short
from keepsight.eval.xlsx_files import is_workbook, read_rows

Entries = list[tuple[str, Any]]
"""The entries of a file, each with its place ("file:line")."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A form of a file of answers or captions.

    Attributes:
        writer: who writes this form, as commands print it.
        keys: the keys by which the form is known; a file of this form has all of them.
        answer: the key of the model's words.
        without: keys that a file of this form does not have.
        number: the key of the question's id; None where the lines have none, or only one of the writer's own.
        question: the key of the question's text, if there is one.
        label: the key of the right answer, if there is one.
        image: the keys under which the picture may be named; the first that is there counts.
        own_ids: whether the ids of the lines are the writer's own, and not those of the questions.
    """

    writer: str
    keys: tuple[str, ...]
    answer: str
    without: tuple[str, ...] = ()
    number: str | None = None
    question: str | None = None
    label: str | None = None
    image: tuple[str, ...] = ("image", "image_id")
    own_ids: bool = False

    def words(self) -> str:
        """Return the form in words, as commands print it after the name of a file."""
        also = [(self.number, "ids"), (self.question, "questions"), (self.label, "labels")]
        rest = "".join(f", {what} from {key!r}" for key, what in also if key is not None)
        return f"{self.writer}: answers from {self.answer!r}{rest}"

    def to_json(self) -> dict[str, Any]:
        """Return the form as values that JSON can hold."""
        return {
            "form": self.writer,
            "answer": self.answer,
            "id": self.number,
            "question": self.question,
            "label": self.label,
        }


@dataclass(frozen=True, kw_only=True)
class Form:
    """A file, and the form in which it was read."""

    path: Path
    shape: Shape

    def words(self) -> str:
        """Return the form in words, as commands print it after the name of the file."""
        return self.shape.words()

    def to_json(self) -> dict[str, Any]:
        """Return the file's name and its form as values that JSON can hold."""
        return {"file": self.path.name, **self.shape.to_json()}


def _shape(writer: str, keys: str, answer: str, without: str = "", **rest: Any) -> Shape:
    """Return a form whose keys are given as words of one text."""
    return Shape(
        writer=writer,
        keys=tuple(keys.split()),
        answer=answer,
        without=tuple(without.split()),
        **rest,
    )


NAMED = "the key that was named"
"""What stands in the place of the writer where the caller named the key."""
ONLY = "no known form, but only one key could hold the answers"
"""What stands in the place of the writer where the form is not known."""
LMMS_EVAL = "lmms-eval (--log_samples)"
VLMEVALKIT = "VLMEvalKit"
PAI = "PAI, PAINT"
VDGD = "VDGD"
OFFICIAL_CHAIR = "official CHAIR output (sentences)"
HARNESSES = (LMMS_EVAL, VLMEVALKIT)
"""The writers that put a text of their own in the place of an answer that they could not get."""

_RUN = _shape("keepsight run", "id answer error", "answer", number="id", image=("image_id", "image"))

YES_NO: tuple[Shape, ...] = (
    _RUN,
    _shape(
        LMMS_EVAL,
        "doc_id filtered_resps target",
        "filtered_resps",
        question="input",
        label="target",
        own_ids=True,
    ),
    _shape(
        VLMEVALKIT,
        "index question answer prediction",
        "prediction",
        question="question",
        label="answer",
        image=("image_id", "image"),
        own_ids=True,
    ),
    _shape(PAI, "query label ans", "ans", question="query", label="label"),
    _shape("answers with their questions and labels", "question label answer", "answer", "text"),
    _shape("answers with their questions and labels", "question label text", "text", "answer"),
    _shape(
        "POPE's questions with answers added",
        "text label answer",
        "answer",
        "question prompt query",
        question="text",
    ),
    _shape("LLaVA, VCD, LLaVA-Align, ClearSight", "question_id prompt text", "text"),
    _shape("LLaVA, without prompts", "question_id text", "text", "label"),
    _shape("POPE, without ids", "question answer", "answer", "question_id id"),
    _shape("ids and answers", "question_id answer", "answer"),
    _shape("BEAF, ids and answers", "id answer", "answer"),
)
"""The forms of answers to yes-or-no questions. The first counts that fits and explains every key called like words."""

CAPTIONS: tuple[Shape, ...] = (
    _shape("keepsight run", "image_id answer error", "answer", image=("image_id",)),
    _shape(LMMS_EVAL, "doc_id filtered_resps", "filtered_resps", image=("image_id",), own_ids=True),
    _shape(VLMEVALKIT, "index question prediction", "prediction", image=("image_id",), own_ids=True),
    _shape(OFFICIAL_CHAIR, "image_id caption mscoco_generated_words", "caption", image=("image_id",)),
    _shape("COCO results, keepsight caption", "image_id caption", "caption", image=("image_id",)),
    _shape("POPE's caption_data", "question_id image_id prompt text", "text", image=("image_id",)),
    _shape("image ids and answers", "image_id answer", "answer", image=("image_id",)),
)
"""The forms of captions that `chair` scores."""

AMBER: tuple[Shape, ...] = (
    _RUN,
    _shape("AMBER", "id response", "response", number="id"),
    _shape("ids and answers", "id answer", "answer", number="id"),
    _shape(
        VDGD,
        "id pure_input image_path output",
        "output",
        question="pure_input",
        image=("image_path",),
        own_ids=True,
    ),
    _shape("keepsight caption", "image_id caption", "caption", "id", image=("image", "image_id")),
    _shape("pictures and captions", "image caption", "caption", "id", image=("image", "image_id")),
)
"""The forms of responses to AMBER's prompts."""

# Other names under which programs write what a model said. A name that is missing here can be read with the option; a name
# too many only makes a file ambiguous, which is an error that says what to do.
_WORDS = re.compile(
    r"(?:^|_)(?:answers?|ans|text|captions?|responses?|outputs?|preds?|predict\w*|generat\w*|completions?|replies|reply|resps)"
    r"(?:$|_)",
    re.IGNORECASE,
)
_NO_WORDS = re.compile(
    r"^(?:gt|gold|ground|true|correct|right|reference|target|question|prompt|input|query)_|"
    r"_(?:id|ids|type|tokens|len|length|file|path|prob|probs|score|scores|seconds|time|logits|gt|label)$",
    re.IGNORECASE,
)


def choose(
    entries: Entries,
    shapes: Sequence[Shape],
    path: Path,
    *,
    key: str | None = None,
    option: str = "--answer-key",
) -> Shape:
    """Return the form of a file, which decides which key of every entry holds the model's words.

    The keys of all entries together decide, so that an entry that lacks the model's words is not read from another key.

    Args:
        entries: the entries of the file with their places, at least one.
        shapes: `YES_NO`, `CAPTIONS` or `AMBER`.
        path: the file, which errors name.
        key: the key of the model's words, if the caller names it.
        option: what the caller names it with.

    Raises:
        MalformedFile: an entry is no object, no key could hold the model's words, or no entry has the key that was named.
        AmbiguousKeys: several keys could hold the model's words, and the form of the file is not known.
    """
    usual = {YES_NO: "answer", CAPTIONS: "caption", AMBER: "response"}.get(tuple(shapes), "answer")
    keys = _keys(entries, usual)
    if key is not None:
        check_key(key, entries, path, option)
        fits = [shape for shape in shapes if shape.answer == key and _fits(shape, keys)]
        return _completed(fits[0], keys) if fits else _plain(key, keys, shapes, NAMED)
    found = _candidates(entries)
    for shape in shapes:
        if _fits(shape, keys) and found <= _explained(shape):
            return _completed(shape, keys)
    if len(found) > 1:
        names = " and ".join(repr(name) for name in keys if name in found)
        raise AmbiguousKeys(
            f"{path}: {names} could each hold what the model said, and the file has the form of no known program: name the"
            f" right one with {option} (keys: {_listed(keys)})"
        )
    if found:
        return _plain(next(iter(found)), keys, shapes, ONLY)
    if all(entry.get("error") is not None for _, entry in entries):
        return _plain(usual, keys, shapes, "failures alone")
    where, entry = entries[0]
    raise MalformedFile(
        f"{where}: the key {usual!r} is missing (keys: {_listed(entry)}); another key of the answers is named with {option}"
    )


def parts(entries: Entries) -> list[Entries]:
    """Return the entries in groups that hold the model's words under one key each, for forms that may stand in one file.

    Where an entry has several keys that could hold them, all entries stay together, so that `choose` decides for all.
    Entries that name no such key, as failures may, are a group of their own.
    """
    found: dict[str | None, Entries] = {}
    for where, entry in entries:
        names = _candidates([(where, entry)]) if isinstance(entry, dict) else set()
        if len(names) > 1:
            return [entries]
        found.setdefault(next(iter(names), None), []).append((where, entry))
    return list(found.values())


def read_answer_entries(path: Path) -> Entries:
    """Return the entries of a file: JSON lines, a JSON list, or the rows of a workbook (.xlsx).

    Raises:
        InputError: the file cannot be read.
        MalformedFile: it does not have one of these forms.
        MissingData: it is a workbook, and openpyxl is not installed.
    """
    return list(read_rows(path) if is_workbook(path) else read_entries(read_text(path), path))


def value_of(entry: Mapping[str, Any], shape: Shape, where: str) -> Any:
    """Return what is under the key of the model's words; lmms-eval and VDGD write it as a list of one text.

    Raises:
        MalformedFile: the key is missing, or the list of such a form does not hold exactly one value.
    """
    value = require(entry, shape.answer, where)
    if shape.writer not in (LMMS_EVAL, VDGD) or not isinstance(value, list):
        return value
    if len(value) != 1:
        raise MalformedFile(f"{where}: {shape.answer!r} must hold one answer, not {len(value)}")
    return value[0]


# What the harnesses write in the place of an answer that they could not get.
_FAILED = {LMMS_EVAL: "[LMMS_EVAL_REQUEST_FAILED", VLMEVALKIT: "Failed to obtain answer"}


def failed(entry: Mapping[str, Any], shape: Shape) -> bool:
    """Return whether the model gave no answer: an `error`, or the text that a harness writes in the place of an answer."""
    if entry.get("error") is not None:
        return True
    value = entry.get(shape.answer)
    text = value[0] if isinstance(value, list) and len(value) == 1 else value
    mark = _FAILED.get(shape.writer)
    return mark is not None and isinstance(text, str) and text.startswith(mark)


def check_key(key: str | None, entries: Entries, path: Path, option: str) -> None:
    """Raise `MalformedFile`, which lists the keys of the file, if no entry has the key that the caller named."""
    keys = _keys(entries, "answer")
    if key is not None and key not in keys:
        raise MalformedFile(f"{path}: no entry has the key {key!r} ({option}); keys: {_listed(keys)}")


FEW = 10
"""Fewer answers than this are not suspected of being labels, since a model may be right so often in so many words."""


def repeat_labels(pairs: Iterable[tuple[str, str]]) -> bool:
    """Return whether every answer is the word of its label, so that a key of labels may have been read as answers.

    Args:
        pairs: the answers with their labels; fewer than `FEW` raise no suspicion.
    """
    listed = list(pairs)
    return len(listed) >= FEW and all(
        answer.strip().lower() == label.strip().lower() for answer, label in listed
    )


def _keys(entries: Entries, usual: str) -> dict[str, None]:
    """Return the keys of all entries in the order in which they first come."""
    keys: dict[str, None] = {}
    for where, entry in entries:
        if not isinstance(entry, dict):
            raise MalformedFile(f"{where}: an object with {usual!r} was expected, not {short(entry)}")
        keys.update(dict.fromkeys(entry))
    return keys


def _fits(shape: Shape, keys: Mapping[str, None]) -> bool:
    """Return whether a file with these keys may have this form."""
    return keys.keys() >= set(shape.keys) and keys.keys().isdisjoint(shape.without)


def _candidates(entries: Entries) -> set[str]:
    """Return the keys that are called like a model's words, and hold a text or a list of texts in some entry."""
    found: set[str] = set()
    for _, entry in entries:
        for name in entry.keys() - found:
            value = entry[name]
            text = (
                next((one for one in value if isinstance(one, str)), None)
                if isinstance(value, list)
                else value
            )
            if isinstance(text, str) and could_be_words(name):
                found.add(name)
    return found


@lru_cache(maxsize=1000)
def could_be_words(name: str) -> bool:
    """Return whether a key is called like what a model said, such as "model_answer" or "prediction"."""
    # "modelAnswer" and "model-answer" are cut into words as "model_answer" is.
    words = re.sub(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return bool(_WORDS.search(words)) and not _NO_WORDS.search(words)


def _explained(shape: Shape) -> set[str]:
    """Return the keys of a form that may be called like a model's words, and of which it is known what they hold."""
    # lmms-eval keeps the words before its filter beside them, and VLMEvalKit the data set's own answer.
    beside = {LMMS_EVAL: {"resps"}, VLMEVALKIT: {"answer"}}.get(shape.writer, set())
    return {shape.answer, *shape.keys, *beside, *(key for key in (shape.question, shape.label) if key)}


def _completed(shape: Shape, keys: Mapping[str, None]) -> Shape:
    """Return a form with the usual keys of ids, questions and labels where it names none and the file has them."""
    taken = {shape.answer, shape.question, shape.label}
    first = partial(_first, keys=keys, taken=taken)
    return replace(
        shape,
        number=shape.number or (None if shape.own_ids else first("question_id", "id")),
        question=_there(shape.question, keys) or first("question", "prompt", "query"),
        label=_there(shape.label, keys) or first("label"),
    )


def _plain(key: str, keys: Mapping[str, None], shapes: Sequence[Shape], writer: str) -> Shape:
    """Return a form of which only the key of the model's words is certain; the other keys have their usual names."""
    image = tuple(dict.fromkeys(name for shape in shapes for name in shape.image))
    shape = _completed(Shape(writer=writer, keys=(key,), answer=key, image=image), keys)
    # POPE's files of questions call the question "text".
    with_text = shape.question is None and shape.label is not None and "text" in keys and key != "text"
    return replace(shape, question="text") if with_text else shape


def _there(key: str | None, keys: Mapping[str, None]) -> str | None:
    """Return the key if the file has it."""
    return key if key in keys else None


def _first(*names: str, keys: Mapping[str, None], taken: set[str | None]) -> str | None:
    """Return the first of the names that the file has as a key and that stands for nothing else."""
    return next((name for name in names if name in keys and name not in taken), None)


def _listed(keys: Iterable[str]) -> str:
    """Return keys for an error to quote, at most 20 of them."""
    names = [short(key) for key in keys]
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") or "none"
