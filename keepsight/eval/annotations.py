"""Which objects are in which image: ground truth from COCO's annotations or from plain lists of objects."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.chair.captions import read_entries, read_image_id, read_text, require
from keepsight.eval.chair.score import check_family, mentions
from keepsight.eval.chair.vocabulary import COCO, Vocabulary
from keepsight.eval.errors import EmptyFile, MalformedFile, MixedTruth, UnknownObject
from keepsight.eval.image_ids import ImageId, image_id

Truth = dict[ImageId, set[str]]


def load_truth(
    paths: Sequence[str | Path],
    image_ids: Iterable[object] | None,
    family: str = "pattern",
    *,
    vocabulary: Vocabulary = COCO,
) -> dict[ImageId, frozenset[str]]:
    """The objects of the asked images, gathered from all files.

    A file is told by what it holds:

    - COCO instances (`instances_val2014.json`): the names of the categories annotated, crowds included.
    - COCO captions (`captions_val2014.json`): the objects the reference captions name, found as in a caption
      that is scored. CHAIR's ground truth is both; a person only a caption speaks of is no hallucination.
    - JSON lines of `{"image_id": …, "objects": ["cat", …]}`, or a JSON list of such; the objects may stand under
      `truth`, as in the `items.jsonl` of a run.
    - `{"categories": ["person", …], "objects": {image_id: [category number from 0, …]}}`, one compact JSON:
      what `ground_truth_file.to_json` makes, with family and vocabulary in it.

    Any may be gzipped (.gz). Object names may be synonyms ("sofa"); they are brought to the vocabulary's own.
    Lists of objects that were made with the other family's reference captions cannot be told unless the file
    says its family, so keep it in their name.

    Args:
        image_ids: the images wanted; None for all that the files know.

    Returns the images that some file knows, also those without objects; the rest is left out, so that
    `chair.score` raises `UnknownImage` for it.

    Raises:
        EmptyFile: no file was given, or one is empty.
        MalformedFile: a file is not in one of these forms.
        UnknownObject: a file names an object the vocabulary does not hold.
        MixedTruth: a file says that it was made with another family or vocabulary.
    """
    check_family(family)
    if not paths:
        raise EmptyFile(
            "no ground truth: give COCO annotations (--annotations) or lists of objects (--ground-truth)"
        )
    asked = None if image_ids is None else {image_id(image) for image in image_ids}
    reader = _Reader(asked, family, vocabulary)
    for path in map(Path, paths):
        reader.read(path)
    return {image: frozenset(objects) for image, objects in reader.truth.items()}


class _Reader:
    """Gathers the objects of the asked images from file after file."""

    def __init__(self, asked: set[ImageId] | None, family: str, vocabulary: Vocabulary) -> None:
        self.asked, self.family, self.vocabulary = asked, family, vocabulary
        self.truth: Truth = defaultdict(set)

    def read(self, path: Path) -> None:
        text = _text(path)
        if not text.strip():
            raise EmptyFile(f"{path}: is empty")
        content = _whole(text, path)
        if isinstance(content, dict) and "annotations" in content:
            self._coco(path, content)
        elif isinstance(content, dict) and {"categories", "objects"} <= content.keys():
            self._compact(path, content)
        else:
            self._lists(path, text)

    def _coco(self, path: Path, content: dict[str, Any]) -> None:
        from pycocotools.coco import COCO as Annotations

        coco = Annotations()
        coco.dataset = content
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
                coco.createIndex()
        except KeyError as error:
            raise MalformedFile(f"{path}: COCO annotations, but an entry lacks {error}") from error
        except (TypeError, AttributeError) as error:
            raise MalformedFile(f"{path}: COCO annotations, but not in COCO's form ({error})") from error
        names: dict[Any, str] = {}
        for raw in set(coco.imgs) | set(coco.imgToAnns):
            image = self._image(raw, path)
            if self.asked is not None and image not in self.asked:
                continue
            objects = self.truth[image]  # known, even if nothing is annotated
            for annotation in coco.imgToAnns.get(raw, ()):
                if "caption" in annotation:
                    objects.update(self._spoken(annotation["caption"], path, raw))
                    continue
                number = annotation.get("category_id")
                try:
                    name = names.get(number) or self._canonical(coco.cats[number].get("name"), str(path))
                except (KeyError, TypeError) as error:
                    raise MalformedFile(
                        f"{path}: an annotation of image {raw} has the category {number!r}, which is not in 'categories'"
                    ) from error
                names[number] = name
                objects.add(name)

    def _spoken(self, caption: object, path: Path, image: object) -> set[str]:
        if not isinstance(caption, str):
            raise MalformedFile(f"{path}: a caption of image {image} is no text but {caption!r:.40}")
        found = mentions(caption, family=self.family, vocabulary=self.vocabulary)
        return {mention.object for mention in found}

    def _compact(self, path: Path, content: dict[str, Any]) -> None:
        self._check_making(path, content)
        if not isinstance(content["categories"], list) or not isinstance(content["objects"], dict):
            raise MalformedFile(
                f"{path}: 'categories' must be a list of names, and 'objects' map image ids to numbers of categories"
            )
        names = [self._canonical(name, str(path)) for name in content["categories"]]
        for raw, numbers in content["objects"].items():
            image = self._image(raw, path)
            if self.asked is not None and image not in self.asked:
                continue
            try:
                if any(isinstance(number, bool) or number < 0 for number in numbers):
                    raise IndexError
                self.truth[image].update(names[number] for number in numbers)
            except (TypeError, IndexError) as error:
                raise MalformedFile(
                    f"{path}: the objects of image {raw} must be numbers of categories, from 0 to {len(names) - 1}"
                ) from error

    def _check_making(self, path: Path, content: dict[str, Any]) -> None:
        """What the file says of how it was made must be what it is read for."""
        family = content.get("family", self.family)
        if family != self.family:
            raise MixedTruth(
                f"{path}: was made with family {family!r}, not {self.family!r}; score with --family {family} or make it anew"
            )
        made = content.get("vocabulary")
        if not isinstance(made, dict) or "sha256" not in made:
            return
        if made["sha256"] != self.vocabulary.sha256:
            raise MixedTruth(
                f"{path}: was made with the vocabulary {made.get('name')!r}, another than {self.vocabulary.name!r} is now; "
                "give the same --synonyms or make it anew"
            )

    def _lists(self, path: Path, text: str) -> None:
        for where, entry in read_entries(text, path):
            told = (
                entry["truth"] if isinstance(entry, dict) and isinstance(entry.get("truth"), dict) else entry
            )
            objects = require(told, "objects", where)
            if not isinstance(objects, list):
                raise MalformedFile(f"{where}: 'objects' must be a list of names")
            image = read_image_id(entry, where)
            named = {self._canonical(name, where) for name in objects}
            if self.asked is None or image in self.asked:
                self.truth[image].update(named)

    def _image(self, raw: object, path: Path) -> ImageId:
        try:
            return image_id(raw)
        except InputError as error:
            raise MalformedFile(f"{path}: {error}") from error

    def _canonical(self, name: object, where: str) -> str:
        if not isinstance(name, str):
            raise MalformedFile(f"{where}: an object is named by a text, not {name!r:.40}")
        if name not in self.vocabulary.words:
            hint = self.vocabulary.hint(name)
            raise UnknownObject(f"{where}: {name!r:.80} is not an object of the vocabulary; {hint}")
        return self.vocabulary.words[name]


# Outlines are nine tenths of COCO's instances and say nothing about which objects there are.
_OUTLINES = re.compile(r'"segmentation"\s*:\s*\[[\d\s.,\[\]eE+-]*\]')


def _whole(text: str, path: Path) -> Any:
    """The file's value, without outlines, or None when it holds several values, as JSON lines do."""
    if '"segmentation"' in text:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(_OUTLINES.sub('"segmentation":0', text))
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
        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MalformedFile(f"{path}: is not gzipped UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
