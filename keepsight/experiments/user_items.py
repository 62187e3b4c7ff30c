"""Benchmarks from the user's own files: a folder of pictures, POPE's questions, or BEAF's questions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keepsight.eval.errors import MalformedFile, UnknownImage
from keepsight.eval.image_ids import image_id
from keepsight.eval.json_files import read_entries, read_text, require
from keepsight.experiments.benchmark import DESCRIBE, Item
from keepsight.experiments.errors import BadBenchmark

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""The endings of the files in a folder that count as pictures."""


def chair(folder: Path, truth: Sequence[Path], family: str | None, limit: int | None) -> list[Item]:
    """One question about every picture in a folder, in the order of their names.

    Args:
        folder: the folder with the pictures.
        truth: files that say what is in the pictures; may be empty.
        family: the CHAIR family in which reference captions among them are read; None is ``pattern``.
        limit: how many pictures are kept; None keeps all.

    Raises:
        BadBenchmark: there is no picture, a name is not UTF-8, or two files have the same image id.
        UnknownImage: ``truth`` does not know a picture.
    """
    # A folder lists its files in no fixed order, and a resumed run must ask the same questions in the same order.
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())[
        :limit
    ]
    if not paths:
        raise BadBenchmark(
            f"{folder} holds no picture: its files end in none of {', '.join(sorted(PICTURES))}"
        )
    # Linux allows any bytes in a name. The ids of questions come from the names and are written as UTF-8, where such
    # bytes have no place.
    if odd := next((path for path in paths if "\ufffd" in os.fsencode(path).decode(errors="replace")), None):
        raise BadBenchmark(f"{odd!r} has a name that is not UTF-8: rename it")
    # An image id is the number in a COCO file name, so that two files such as 7.jpg and 7.png have the same one.
    named = {path: image_id(path.stem) for path in paths}
    first: dict[Any, Path] = {}
    for path, name in named.items():
        if first.setdefault(name, path) != path:
            raise BadBenchmark(f"{first[name]} and {path} are both image {name}: rename one")
    objects: dict[Any, list[str] | None] = dict.fromkeys(named.values())
    if truth:
        from keepsight.eval.annotations import load_truth

        known = load_truth(truth, named.values(), family or "pattern")
        for path, name in named.items():
            if name not in known:
                where = ", ".join(map(str, truth))
                raise UnknownImage(
                    f"{path} is image {name}, of which {where} knows nothing: leave the picture out"
                )
            # A set has no fixed order, and the truth is part of the digest of the benchmark.
            objects[name] = sorted(known[name])
    return [
        Item(
            id=str(name),
            image_id=name,
            question=DESCRIBE,
            truth={"objects": objects[name]},
            picture=_opener(path),
        )
        for path, name in named.items()
    ]


def pope(folder: Path, files: Sequence[Path], limit: int | None) -> list[Item]:
    """The questions of POPE's files, file by file, with those about one picture next to each other. Raises as
    ``user_benchmark``."""
    from keepsight.eval.pope.files import read_questions, split_names

    found = []
    for file, split in zip(files, split_names(files), strict=True):
        # The reader of questions turns a picture's file name into an image id, so the names are read once more beside it.
        images = [_name(entry, where) for where, entry in read_entries(read_text(file), file)]
        for question, image in zip(read_questions(file, split), images, strict=True):
            # POPE numbers the questions of each file from 1, so only the split makes an id unique.
            name = f"{question.split}/{question.question_id}"
            facts = {"label": question.label, "split": question.split, "object": _object(question.text)}
            found.append(_Row(question.where, image, image, name, question.text, facts))
    return _items(folder, found, limit)


def beaf(folder: Path, files: Sequence[Path], limit: int | None) -> list[Item]:
    """The questions of BEAF's file; ``limit`` counts originals, each with its edited pictures. Raises as
    ``user_benchmark``."""
    from keepsight.eval.beaf.files import read_questions

    if len(files) != 1:
        raise BadBenchmark(
            f"BEAF's questions are one file, in which pictures and their edits meet; not {len(files)}"
        )
    found = []
    for question in read_questions(files[0]):
        facts = {
            "label": question.label,
            "image": question.image,
            "orig_img": not question.edited,
            "removed_q": question.removable,
        }
        name = str(question.id)
        found.append(_Row(question.where, question.original, question.image, name, question.text, facts))
    return _items(folder, found, limit)


class _Row(NamedTuple):
    """A question of a file.

    Attributes:
        where: its place in the file, for messages.
        group: what is kept or left out as a whole: the picture, of BEAF the original with its edits.
        image: the file name of the picture.
        id, question, truth: those of the item.
    """

    where: str
    group: str
    image: str
    id: str
    question: str
    truth: dict[str, Any]


def _items(folder: Path, rows: Sequence[_Row], limit: int | None) -> list[Item]:
    """The questions of the first ``limit`` groups, with those about one picture next to each other, so that a batch
    opens few files."""
    groups: dict[str, dict[str, list[_Row]]] = {}
    first: dict[str, str] = {}
    for row in rows:
        groups.setdefault(row.group, {}).setdefault(row.image, []).append(row)
        # The message names both places, which the check of the benchmark itself could not.
        if first.setdefault(row.id, row.where) != row.where:
            raise MalformedFile(f"{row.where}: question {row.id} stands in {first[row.id]} already: keep one")
    found = []
    for pictures in list(groups.values())[:limit]:
        for image, asked in pictures.items():
            path = folder / image
            # A picture that does not exist is found here, before a model is loaded and the first question asked.
            if not path.is_file():
                raise BadBenchmark(
                    f"{asked[0].where}: there is no picture {path}: is {folder} the right folder?"
                )
            for row in asked:
                found.append(
                    Item(
                        id=row.id,
                        image_id=image_id(image),
                        question=row.question,
                        truth=row.truth,
                        picture=_opener(path),
                    )
                )
    return found


def _name(entry: Any, where: str) -> str:
    """The file name of a question's picture, from which POPE's reader keeps only the image id."""
    image = require(entry, "image", where)
    if not isinstance(image, str):
        raise MalformedFile(f"{where}: 'image' must be the name of a file, not {image!r}")
    return image


def _opener(path: Path) -> Callable[[], Image]:
    """A function that opens a picture."""
    return partial(_open, path)


@lru_cache(maxsize=4)
def _open(path: Path) -> Image:
    """The picture of a file. Questions about one picture stand side by side, so a small cache saves most readings."""
    from keepsight.source.images import open_picture

    return open_picture(path)


def _object(question: str) -> str | None:
    """The object that a question of POPE asks about, in the official wording or in the one with the known misspelling."""
    found = re.fullmatch(r"Is there an? (.+) in the im(?:an)?age\?", question.strip())
    return found.group(1) if found else None
