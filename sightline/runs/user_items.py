"""Benches from the user's files: a folder of pictures, POPE's questions, BEAF's questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.eval.captions import read_entries, read_text, require
from sightline.eval.errors import EmptyFile, MalformedFile, UnknownImage
from sightline.eval.images import image_id
from sightline.runs.bench import DESCRIBE, Item
from sightline.runs.errors import BadBench

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of files that count as pictures in a folder."""
KINDS = ("random", "popular", "adversarial")


def chair(folder: Path, truth: Sequence[Path], family: str | None, limit: int | None) -> list[Item]:
    """One question about every picture in a folder, in the order of their names."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())[
        :limit
    ]
    if not paths:
        raise BadBench(f"{folder} holds no picture: its files end in none of {', '.join(sorted(PICTURES))}")
    named = {path: image_id(path.stem) for path in paths}
    first: dict[Any, Path] = {}
    for path, name in named.items():
        if first.setdefault(name, path) != path:
            raise BadBench(f"{first[name]} and {path} are both image {name}: rename one")
    objects: dict[Any, list[str] | None] = dict.fromkeys(named.values())
    if truth:
        from sightline.eval.annotations import load_truth

        known = load_truth(truth, named.values(), family or "pattern")
        for path, name in named.items():
            if name not in known:
                where = ", ".join(map(str, truth))
                raise UnknownImage(
                    f"{path} is image {name}, of which {where} knows nothing: leave the picture out"
                )
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
    """The questions of POPE's files, file by file."""
    rows = []
    for file, split in zip(files, _splits(files), strict=True):
        for where, entry in _entries(file):
            number, image = _identifier(entry, "question_id", where), _text(entry, "image", where)
            label = _label(entry, "label", where)
            asked = _text(entry, "question" if "text" not in entry else "text", where)
            facts = {"label": label, "split": split, "object": _object(asked)}
            rows.append((where, f"{split}/{number}", image, asked, facts))
    return _items(folder, rows, limit)


def beaf(folder: Path, files: Sequence[Path], limit: int | None) -> list[Item]:
    """The questions of BEAF's file."""
    rows = []
    for file in files:
        for where, entry in _entries(file):
            number, image = _identifier(entry, "id", where), _text(entry, "image", where)
            facts: dict[str, Any] = {"label": _label(entry, "gt", where), "image": image}
            for key in ("orig_img", "removed_q"):
                facts[key] = require(entry, key, where)
                if not isinstance(facts[key], bool):
                    raise MalformedFile(f"{where}: {key!r} must be true or false, not {facts[key]!r}")
            rows.append((where, str(number), image, _text(entry, "question", where), facts))
    return _items(folder, rows, limit)


def _items(
    folder: Path, rows: Sequence[tuple[str, str, str, str, dict[str, Any]]], limit: int | None
) -> list[Item]:
    """The rows as items, those of one picture side by side, so that a batch opens few pictures."""
    by_picture: dict[str, list[tuple[str, str, str, str, dict[str, Any]]]] = {}
    for row in rows:
        by_picture.setdefault(row[2], []).append(row)
    first: dict[str, str] = {}
    for where, number, *_ in rows:
        if first.setdefault(number, where) != where:
            raise MalformedFile(f"{where}: question {number} stands in {first[number]} already: keep one")
    found = []
    for image, asked in list(by_picture.items())[:limit]:
        path = folder / image
        if not path.is_file():
            raise BadBench(f"{asked[0][0]}: there is no picture {path}: is {folder} the right folder?")
        found += [
            Item(id=number, image_id=image_id(Path(image).stem), question=text, truth=facts, picture=_opener(path))
            for _, number, _, text, facts in asked
        ]  # fmt: skip
    return found


def _opener(path: Path) -> Callable[[], Image]:
    return partial(_open, path)


@lru_cache(maxsize=4)
def _open(path: Path) -> Image:
    """The picture of a few questions in a row is read once."""
    from sightline.captioning import open_picture

    return open_picture(path)


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    empty = True
    for where, entry in read_entries(read_text(file), file):
        empty = False
        yield where, entry
    if empty:
        raise EmptyFile(f"{file}: holds no question")


def _text(entry: Any, key: str, where: str) -> str:
    value = require(entry, key, where)
    if not isinstance(value, str) or not value.strip():
        raise MalformedFile(f"{where}: {key!r} must be a text, not {value!r}")
    return value


def _identifier(entry: Any, key: str, where: str) -> int | str:
    value = require(entry, key, where)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise MalformedFile(f"{where}: {key!r} must be a whole number or a text, not {value!r}")
    return value


def _label(entry: Any, key: str, where: str) -> str:
    value = _text(entry, key, where).strip().lower()
    if value not in ("yes", "no"):
        raise MalformedFile(f"{where}: {key!r} must be yes or no, not {value!r}")
    return value


def _object(question: str) -> str | None:
    """What POPE's question asks about, in its official wording or the one with the known misspelling."""
    found = re.fullmatch(r"Is there an? (.+) in the im(?:an)?age\?", question.strip())
    return found.group(1) if found else None


def _splits(files: Sequence[Path]) -> list[str]:
    """What to call the questions of each file: the kind in its name, else its name."""
    found = []
    for file in files:
        kinds = [kind for kind in KINDS if kind in file.stem.lower()]
        found.append(kinds[0] if len(kinds) == 1 else file.stem)
    twice = next((split for split in found if found.count(split) > 1), None)
    if twice:
        same = [str(file) for file, split in zip(files, found, strict=True) if split == twice]
        raise BadBench(f"{' and '.join(same)} are both the split {twice!r}: give one of them another name")
    return found
