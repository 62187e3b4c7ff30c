"""Which objects are in which picture, in the order in which they were annotated: what `pope.build` needs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keepsight.errors import InputError, InvalidParameter
from keepsight.eval.chair.captions import parse_json, read_entries, read_text, require
from keepsight.eval.chair.score import mentions
from keepsight.eval.errors import EmptyFile, MalformedFile
from keepsight.eval.pope.build import Annotated

Objects = dict[str, dict[str, None]]


def read_pictures(
    paths: Sequence[str | Path],
    *,
    references: Sequence[str | Path] = (),
    image_name: str = "{}",
) -> list[Annotated]:
    """The pictures of all files and their objects, both in the order in which they first come.

    A file is told by what it holds:

    - COCO instances (`instances_val2014.json`): the names of the categories annotated, crowds included.
    - JSON lines, or a JSON list, of `{"image": "a.jpg", "objects": ["cat", …]}`, POPE's own form, or with
      "image_id" in the place of "image".
    - `{"categories": ["person", …], "objects": {image_id: [category number from 0, …]}}`, one compact JSON.

    Any may be gzipped (.gz).

    Args:
        references: COCO captions (`captions_val2014.json`). What people say of a picture counts as in it, after
            what is annotated, as in the ground truth of CHAIR and of the published POPE files (COCO's 80 objects,
            family pattern). They take about 40 s for all of val2014.
        image_name: names a picture whose file knows only a number, such as "COCO_val2014_{:012d}.jpg".

    Raises:
        EmptyFile: no file was given, or one holds no picture.
        MalformedFile: a file is not in one of these forms; the message names file and line.
        InvalidParameter: `image_name` makes no name of a number.
    """
    if not paths:
        raise EmptyFile("no pictures: give COCO instances (--annotations) or lists of objects (--objects)")
    found: Objects = {}
    for path in [*map(Path, paths), *map(Path, references)]:
        before = len(found)
        seen = False
        for image, objects in _read(path, image_name):
            seen = True
            found.setdefault(image, {}).update(dict.fromkeys(objects))
        if not seen and len(found) == before:
            raise EmptyFile(f"{path}: holds no picture")
    return [Annotated(image=image, objects=tuple(objects)) for image, objects in found.items()]


def _read(path: Path, image_name: str) -> Iterator[tuple[str, list[str]]]:
    text = _text(path)
    if not text.strip():
        raise EmptyFile(f"{path}: is empty")
    whole = _one_object(text, path)
    if whole is not None and "annotations" in whole:
        yield from _coco(path, whole)
    elif whole is not None and {"categories", "objects"} <= whole.keys():
        yield from _compact(path, whole, image_name)
    else:
        for where, entry in read_entries(text, path):
            yield _listed(entry, where, image_name)


def _one_object(text: str, path: Path) -> dict[str, Any] | None:
    """The file's value if it is one JSON object, None for a list or for lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        parse_json(text, str(path))
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"{path}: is not JSON that can be read ({error})") from error
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return read_text(path)
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise MalformedFile(f"{path}: is not gzipped UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _coco(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Pictures in the order of "images", their objects in the order of "annotations"."""
    try:
        names = {image["id"]: _name(image["file_name"], str(path)) for image in content["images"]}
        categories = {entry["id"]: _name(entry["name"], str(path)) for entry in content.get("categories", [])}
        objects: dict[Any, list[str]] = {number: [] for number in names}
        for annotation in content["annotations"]:
            of_image = objects[annotation["image_id"]]
            if "caption" in annotation:
                of_image += [mention.object for mention in mentions(annotation["caption"])]
            else:
                of_image.append(categories[annotation["category_id"]])
    except KeyError as error:
        raise MalformedFile(
            f"{path}: COCO annotations, but an entry lacks, or names an unknown, {error}"
        ) from error
    except (TypeError, AttributeError) as error:
        raise MalformedFile(
            f"{path}: COCO annotations, but an entry is not in COCO's form ({error})"
        ) from error
    for number, name in names.items():
        yield name, objects[number]


def _compact(path: Path, content: dict[str, Any], image_name: str) -> Iterator[tuple[str, list[str]]]:
    where = str(path)
    categories, objects = content["categories"], content["objects"]
    if not isinstance(categories, list) or not isinstance(objects, dict):
        raise MalformedFile(
            f"{where}: 'categories' must be a list of names and 'objects' map image ids to numbers"
        )
    names = [_name(name, where) for name in categories]
    for image, numbers in objects.items():
        known = isinstance(numbers, list) and all(type(at) is int and 0 <= at < len(names) for at in numbers)
        if not known:
            raise MalformedFile(
                f"{where}: image {image!r}: its objects must be numbers of categories, from 0"
            )
        yield _image(image, image_name, where), [names[at] for at in numbers]


def _listed(entry: Any, where: str, image_name: str) -> tuple[str, list[str]]:
    objects = require(entry, "objects", where)
    if not isinstance(objects, list):
        raise MalformedFile(f"{where}: 'objects' must be a list of names")
    image = entry["image"] if "image" in entry else require(entry, "image_id", where)
    return _image(image, image_name, where), [_name(name, where) for name in objects]


def _image(value: Any, image_name: str, where: str) -> str:
    """A file name: texts as they are, numbers through the template."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int:
        return _name(value, where)
    try:
        return _name(image_name.format(value), where)
    except (ValueError, LookupError, AttributeError) as error:
        raise InvalidParameter(
            f"image_name={image_name!r} makes no file name of {value} ({error}); write it like COCO_val2014_{{:012d}}.jpg"
        ) from error


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MalformedFile(f"{where}: a name must be a text, not {json.dumps(value)[:40]}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedFile(f"{where}: a name holds half a character ({value!r})") from error
    return value
