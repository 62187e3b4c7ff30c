"""Which objects are in which image: ground truth from COCO's annotations or from plain lists of objects."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import InputError
from sightline.eval.captions import read_entries, read_image_id, read_text, require
from sightline.eval.chair import check_family, mentions
from sightline.eval.errors import EmptyFile, MalformedFile, UnknownObject
from sightline.eval.images import ImageId, image_id
from sightline.eval.vocabulary import COCO, Vocabulary

Truth = dict[ImageId, set[str]]


def load_truth(
    paths: Sequence[str | Path],
    image_ids: Iterable[object],
    family: str = "pattern",
    *,
    vocabulary: Vocabulary = COCO,
) -> dict[ImageId, frozenset[str]]:
    """The objects of the asked images, gathered from all files.

    A file is told by what it holds:

    - COCO instances (`instances_val2014.json`): the names of the categories annotated, crowds included.
    - COCO captions (`captions_val2014.json`): the objects the reference captions name, found as in a caption
      that is
      scored. CHAIR's ground truth is both; a person only a caption speaks of is no hallucination.
    - JSON lines of `{"image_id": …, "objects": ["cat", …]}`, or a JSON list of such.
    - `{"categories": ["person", …], "objects": {image_id: [category number from 0, …]}}`, one compact JSON.

    Any may be gzipped (.gz). Object names may be synonyms ("sofa"); they are brought to the vocabulary's own.
    Lists of objects that were made with the other family's reference captions cannot be told, so keep the
    family in their name.

    Returns the images that some file knows, also those without objects; the rest is left out, so that
    `chair.score` raises `UnknownImage` for it.

    Raises:
        EmptyFile: no file was given, or one is empty.
        MalformedFile: a file is not in one of these forms.
        UnknownObject: a file names an object the vocabulary does not hold.
    """
    check_family(family)
    if not paths:
        raise EmptyFile(
            "no ground truth: give COCO annotations (--annotations) or lists of objects (--ground-truth)"
        )
    asked = {image_id(image) for image in image_ids}
    truth: Truth = defaultdict(set)
    for path in map(Path, paths):
        _read(path, asked, truth, family, vocabulary)
    return {image: frozenset(objects) for image, objects in truth.items()}


def _read(path: Path, asked: set[ImageId], truth: Truth, family: str, vocabulary: Vocabulary) -> None:
    text = _text(path)
    if not text.strip():
        raise EmptyFile(f"{path}: is empty")
    content = _whole(text, path)
    if isinstance(content, dict) and "annotations" in content:
        _read_coco(path, content, asked, truth, family, vocabulary)
    elif isinstance(content, dict) and {"categories", "objects"} <= content.keys():
        _read_compact(path, content, asked, truth, vocabulary)
    else:
        _read_lists(path, text, asked, truth, vocabulary)


def _whole(text: str, path: Path) -> Any:
    """The file's value, or None when it holds several, as JSON lines do."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        place = f"line {error.lineno}, column {error.colno}"
        raise MalformedFile(f"{path}: is not JSON ({error.msg}, {place})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise MalformedFile(f"{path}: is not JSON that can be read ({error})") from error


def _text(path: Path) -> str:
    if path.suffix != ".gz":
        return read_text(path)
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise MalformedFile(f"{path}: is not gzipped UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_coco(
    path: Path,
    content: dict[str, Any],
    asked: set[ImageId],
    truth: Truth,
    family: str,
    vocabulary: Vocabulary,
) -> None:
    from pycocotools.coco import COCO as Annotations

    coco = Annotations()
    coco.dataset = content
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco.createIndex()
    except (KeyError, TypeError) as error:
        raise MalformedFile(f"{path}: COCO annotations, but an entry lacks {error}") from error
    known = asked & (set(coco.imgs) | set(coco.imgToAnns))
    for image in known:
        truth[image].update()  # known, even if nothing is annotated
        for annotation in coco.imgToAnns.get(image, []):
            if "caption" in annotation:
                spoken = mentions(annotation["caption"], family=family, vocabulary=vocabulary)
                truth[image].update(mention.object for mention in spoken)
            else:
                name = coco.cats.get(annotation.get("category_id"), {}).get("name")
                truth[image].add(_canonical(name, str(path), vocabulary))


def _read_compact(
    path: Path, content: dict[str, Any], asked: set[ImageId], truth: Truth, vocabulary: Vocabulary
) -> None:
    try:
        names = [_canonical(name, str(path), vocabulary) for name in content["categories"]]
        for image, numbers in content["objects"].items():
            if (name := image_id(image)) in asked:
                truth[name].update(names[number] for number in numbers)
    except (TypeError, AttributeError, IndexError) as error:
        raise MalformedFile(
            f"{path}: 'objects' must map image ids to numbers of categories, from 0"
        ) from error


def _read_lists(path: Path, text: str, asked: set[ImageId], truth: Truth, vocabulary: Vocabulary) -> None:
    for where, entry in read_entries(text, path):
        objects = require(entry, "objects", where)
        if not isinstance(objects, list):
            raise MalformedFile(f"{where}: 'objects' must be a list of names")
        image = read_image_id(entry, where)
        named = {_canonical(name, where, vocabulary) for name in objects}
        if image in asked:
            truth[image].update(named)


def _canonical(name: object, where: str, vocabulary: Vocabulary) -> str:
    if not isinstance(name, str):
        raise MalformedFile(f"{where}: an object is named by a text, not {name!r}")
    if name not in vocabulary.words:
        hint = vocabulary.hint(name)
        raise UnknownObject(f"{where}: {name!r} is not an object of the vocabulary; {hint}")
    return vocabulary.words[name]
