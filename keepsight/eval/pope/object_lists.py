"""Read which objects are in which picture, in the order in which they were annotated, as `pope.build` needs them.

`eval.annotations` reads the same files for CHAIR. It keeps neither the order of the objects nor names outside a vocabulary,
and both matter here: the first objects of a picture are asked about, under the names that the file gives them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keepsight.errors import InvalidParameter
from keepsight.eval.chair.score import COCO, check_family, mentions
from keepsight.eval.errors import EmptyFile, MalformedFile, MixedTruth
from keepsight.eval.image_ids import whole_number
from keepsight.eval.json_files import parse_json, read_entries, read_gzipped_text, require, short
from keepsight.eval.pope.build import Annotated

# A dict without values stands for an ordered set: each object once, in the order in which it first comes.
Objects = dict[str, dict[str, None]]


def read_pictures(
    paths: Sequence[str | Path],
    *,
    references: Sequence[str | Path] = (),
    image_name: str = "{}",
    family: str = "pattern",
) -> list[Annotated]:
    """Read the pictures of all files with their objects, both in the order in which they first come.

    The content of a file decides how it is read:

    - COCO instances (`instances_val2014.json`) give the names of the annotated categories, crowds included.
    - JSON lines, or a JSON list, of `{"image": "a.jpg", "objects": ["cat", …]}` are POPE's own form; "image_id" may
      take the place of "image".
    - `{"categories": ["person", …], "objects": {image_id: [category number from 0, …]}}` is one compact JSON object.

    Every file may be gzipped (.gz).

    Args:
        paths: one file or more, of any of these forms.
        references: COCO captions (`captions_val2014.json`). The objects that they name count as being in the picture and
            stand after the annotated ones, as in the ground truth of CHAIR and of the published POPE files (COCO's 80
            objects, family pattern). Reading all of val2014 takes about 40 s.
        image_name: the template for the name of a picture that a file knows only by number, such as
            "COCO_val2014_{:012d}.jpg".
        family: the CHAIR family, "pattern" or "wordnet", that finds objects in the references. A list of objects that says
            that it was made with the other one is refused.

    Raises:
        EmptyFile: no file was given, or a file holds no picture.
        MalformedFile: a file is not in one of these forms; the message names file and line.
        InvalidParameter: `image_name` does not make a name of a number.
        UnknownFamily: there is no CHAIR family of this name.
        MixedTruth: a list says that it was made with another family, or with another vocabulary than that of the references.
        MissingData: the family's language data are not installed.
    """
    check_family(family)
    if not paths:
        raise EmptyFile("no pictures: give COCO instances (--annotations) or lists of objects (--objects)")
    found: Objects = {}
    # The references come last, so that the objects of the annotations are asked about before those that only people named.
    for path in [*map(Path, paths), *map(Path, references)]:
        before = len(found)
        seen = False
        for image, objects in _read(path, image_name, family, bool(references)):
            seen = True
            found.setdefault(image, {}).update(dict.fromkeys(objects))
        if not seen and len(found) == before:
            raise EmptyFile(f"{path}: holds no picture")
    return [Annotated(image=image, objects=tuple(objects)) for image, objects in found.items()]


def _read(path: Path, image_name: str, family: str, mixed: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield each picture of a file with its objects, whatever the form of the file.

    Args:
        path: the file.
        image_name: the template for names of pictures that are known by number.
        family: the CHAIR family.
        mixed: whether objects that references name are added to those of the lists.
    """
    text = read_gzipped_text(path)
    if not text.strip():
        raise EmptyFile(f"{path}: is empty")
    whole = _one_object(text, path)
    if whole is not None and "annotations" in whole:
        yield from _coco(path, whole, family)
    elif whole is not None and {"categories", "objects"} <= whole.keys():
        _check_making(path, whole, family, mixed)
        yield from _compact(path, whole, image_name)
    else:
        for where, entry in read_entries(text, path):
            yield _listed(entry, where, image_name)


def _one_object(text: str, path: Path) -> dict[str, Any] | None:
    """Return the value of a file that is one JSON object; None for a JSON list and for JSON lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # This message says that another value follows the first one: the file holds JSON lines.
        if error.msg == "Extra data":
            return None
        parse_json(text, str(path))  # raises the named error, with line and column
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"{path}: is not JSON that can be read ({error})") from error
    return value if isinstance(value, dict) else None


def _check_making(path: Path, content: dict[str, Any], family: str, mixed: bool) -> None:
    """Raise `MixedTruth` if the file says that it was made with another family, or its words do not fit the references."""
    made_with = content.get("family", family)
    if made_with != family:
        raise MixedTruth(
            f"{path}: was made with family {short(made_with)}, not {family!r}; build with that --family, or make it anew"
        )
    words = content.get("vocabulary")
    if mixed and isinstance(words, dict) and words.get("sha256", COCO.sha256) != COCO.sha256:
        raise MixedTruth(
            f"{path}: was made with the vocabulary {short(words.get('name'))}, but --references are read with COCO's 80"
            " objects: leave them out"
        )


def _coco(path: Path, content: dict[str, Any], family: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the pictures in the order of "images", with their objects in the order of "annotations"."""
    try:
        names = {image["id"]: _name(image["file_name"], str(path)) for image in content["images"]}
        categories = {entry["id"]: _name(entry["name"], str(path)) for entry in content.get("categories", [])}
        # COCO's captions have no categories, and its instances no captions; either may be in the file.
        objects: dict[Any, list[str]] = {number: [] for number in names}
        for annotation in content["annotations"]:
            of_image = objects[annotation["image_id"]]
            if "caption" in annotation:
                of_image += [mention.object for mention in mentions(annotation["caption"], family=family)]
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
    """Yield the pictures of a file that numbers its categories."""
    where = str(path)
    categories, objects = content["categories"], content["objects"]
    if not isinstance(categories, list) or not isinstance(objects, dict):
        raise MalformedFile(
            f"{where}: 'categories' must be a list of names and 'objects' map image ids to numbers"
        )
    names = [_name(name, where) for name in categories]
    for image, numbers in objects.items():
        # `type` instead of `isinstance` leaves out `true`, which is an int to Python; -1 would be the last category.
        known = isinstance(numbers, list) and all(type(at) is int and 0 <= at < len(names) for at in numbers)
        if not known:
            raise MalformedFile(
                f"{where}: image {image!r}: its objects must be numbers of categories, from 0"
            )
        yield _image(image, image_name, where), [names[at] for at in numbers]


def _listed(entry: Any, where: str, image_name: str) -> tuple[str, list[str]]:
    """Return the picture and the objects of one entry of a list."""
    objects = require(entry, "objects", where)
    if not isinstance(objects, list):
        raise MalformedFile(f"{where}: 'objects' must be a list of names")
    image = entry["image"] if "image" in entry else require(entry, "image_id", where)
    return _image(image, image_name, where), [_name(name, where) for name in objects]


def _image(value: Any, image_name: str, where: str) -> str:
    """Return the name of a picture: a text as it is, and a number put into the template."""
    # Keys of JSON objects are always text, so that a number may come as digits.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and (whole := whole_number(value)) is not None:
        value = whole
    if type(value) is not int:
        return _name(value, where)
    try:
        return _name(image_name.format(value), where)
    except (ValueError, LookupError, AttributeError) as error:
        raise InvalidParameter(
            f"image_name={image_name!r} makes no file name of {value} ({error}); write it like COCO_val2014_{{:012d}}.jpg"
        ) from error


def _name(value: Any, where: str) -> str:
    """Return the value itself if it is a name that UTF-8 can hold; otherwise raise `MalformedFile`."""
    if not isinstance(value, str) or not value.strip():
        raise MalformedFile(f"{where}: a name must be a text, not {json.dumps(value)[:40]}")
    # JSON can escape one half of a surrogate pair ("\ud83d"). Such a name cannot be written to a file in UTF-8.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MalformedFile(f"{where}: a name holds half a character ({value!r})") from error
    return value
