"""Read which objects are in which image: ground truth from COCO's annotations or from plain lists of objects."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.chair.score import check_family, mentions
from keepsight.eval.chair.vocabulary import COCO, Vocabulary
from keepsight.eval.errors import EmptyFile, MalformedFile, MixedTruth, UnknownObject
from keepsight.eval.image_ids import ImageId, image_id
from keepsight.eval.json_files import read_entries, read_gzipped_text, read_image_id, require

Truth = dict[ImageId, set[str]]


def load_truth(
    paths: Sequence[str | Path],
    image_ids: Iterable[object] | None,
    family: str = "pattern",
    *,
    vocabulary: Vocabulary = COCO,
) -> dict[ImageId, frozenset[str]]:
    """Return the objects of the images that were asked for, gathered from all files.

    The content of a file decides how it is read:

    - COCO instances (`instances_val2014.json`) give the names of the annotated categories, crowds included.
    - COCO captions (`captions_val2014.json`) give the objects that the reference captions name, found as in a
      caption that is scored. CHAIR's ground truth is made of both, so that a person whom only a caption mentions
      is no hallucination.
    - JSON lines of `{"image_id": …, "objects": ["cat", …]}`, or a JSON list of such objects; the list of names may
      stand under `truth`, as in the `items.jsonl` of a run.
    - `{"categories": ["person", …], "objects": {image_id: [category number from 0, …]}}` is one compact JSON
      object: what `ground_truth_file.to_json` makes, which also records family and vocabulary.

    Every file may be gzipped (.gz). Names of objects may be synonyms ("sofa"); they are replaced by the names of
    the vocabulary. A list of objects that was made with the other family's reference captions cannot be recognised
    unless the file records its family, so keep the family in its file name.

    Args:
        paths: one file or more, of any of these forms.
        image_ids: the images that are wanted; None stands for all images of the files.
        family: "pattern" (the default) or "wordnet": how words of reference captions are brought to dictionary form.
        vocabulary: which words name which objects; COCO's by default.

    Returns:
        The objects of every wanted image that some file knows; an image without objects has an empty set. An image
        that no file knows is left out, so that `chair.score.score` raises `UnknownImage` for it.

    Raises:
        EmptyFile: no file was given, or one is empty.
        MalformedFile: a file is not in one of these forms.
        UnknownFamily: there is no CHAIR family of this name.
        UnknownObject: a file names an object that the vocabulary does not hold.
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
        """Add the objects of one file, whose content decides how it is read."""
        text = read_gzipped_text(path)
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
        """Add what COCO's instances or captions say of the wanted images."""
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
        # COCO has hundreds of thousands of annotations in 80 categories, so that each name is looked up only once.
        names: dict[Any, str] = {}
        # An annotation may be about an image that the list "images" lacks; it counts nevertheless.
        for raw in set(coco.imgs) | set(coco.imgToAnns):
            image = self._image(raw, path)
            if self.asked is not None and image not in self.asked:
                continue
            # Reading the entry makes it, so that an image without annotations is known to be empty instead of unknown.
            objects = self.truth[image]
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
        """Return the objects that a reference caption names."""
        if not isinstance(caption, str):
            raise MalformedFile(f"{path}: a caption of image {image} is no text but {caption!r:.40}")
        found = mentions(caption, family=self.family, vocabulary=self.vocabulary)
        return {mention.object for mention in found}

    def _compact(self, path: Path, content: dict[str, Any]) -> None:
        """Add the objects of a file that numbers its categories, as `ground_truth_file.to_json` makes it."""
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
                # Python would take -1 for the last category and `true` for the second.
                if any(isinstance(number, bool) or number < 0 for number in numbers):
                    raise IndexError
                self.truth[image].update(names[number] for number in numbers)
            except (TypeError, IndexError) as error:
                raise MalformedFile(
                    f"{path}: the objects of image {raw} must be numbers of categories, from 0 to {len(names) - 1}"
                ) from error

    def _check_making(self, path: Path, content: dict[str, Any]) -> None:
        """Raise `MixedTruth` if the file says that it was made with another family or vocabulary than it is read for."""
        # The form allows a file without the two records, which offers nothing to compare.
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
        """Add the objects of a JSON list or of JSON lines."""
        for where, entry in read_entries(text, path):
            told = (
                entry["truth"] if isinstance(entry, dict) and isinstance(entry.get("truth"), dict) else entry
            )
            objects = require(told, "objects", where)
            if not isinstance(objects, list):
                raise MalformedFile(f"{where}: 'objects' must be a list of names")
            image = read_image_id(entry, where)
            # Names are checked for images that are not wanted, too, so that an error does not depend on which ones are.
            named = {self._canonical(name, where) for name in objects}
            if self.asked is None or image in self.asked:
                self.truth[image].update(named)

    def _image(self, raw: object, path: Path) -> ImageId:
        """Return the image's id, or raise `MalformedFile` naming the file."""
        try:
            return image_id(raw)
        except InputError as error:
            raise MalformedFile(f"{path}: {error}") from error

    def _canonical(self, name: object, where: str) -> str:
        """Return the vocabulary's name of the object that a word names; raise `UnknownObject` if there is none."""
        if not isinstance(name, str):
            raise MalformedFile(f"{where}: an object is named by a text, not {name!r:.40}")
        if name not in self.vocabulary.words:
            hint = self.vocabulary.hint(name)
            raise UnknownObject(f"{where}: {name!r:.80} is not an object of the vocabulary; {hint}")
        return self.vocabulary.words[name]


# Outlines are nine tenths of COCO's instances and say nothing about which objects there are, so that they are cut out of
# the text before it is parsed. The outlines of crowds are JSON objects, which the expression does not match; they stay.
_OUTLINES = re.compile(r'"segmentation"\s*:\s*\[[\d\s.,\[\]eE+-]*\]')


def _whole(text: str, path: Path) -> Any:
    """Return the file's JSON value without outlines, or None if it holds several values, as JSON lines do."""
    if '"segmentation"' in text:
        # A text that cannot be parsed is parsed again as it stands, so that an error names the line and column of the file.
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(_OUTLINES.sub('"segmentation":0', text))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # This message says that another value follows the first one: the file holds JSON lines.
        if error.msg == "Extra data":
            return None
        place = f"line {error.lineno}, column {error.colno}"
        raise MalformedFile(f"{path}: is not JSON ({error.msg}, {place})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise MalformedFile(f"{path}: is not JSON that can be read ({error})") from error
