"""Read captions from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keepsight.eval.answer_shapes import (
    CAPTIONS,
    HARNESSES,
    LMMS_EVAL,
    OFFICIAL_CHAIR,
    Entries,
    Form,
    Shape,
    check_key,
    choose,
    failed,
    read_answer_entries,
    value_of,
)
from keepsight.eval.errors import DuplicateImage, EmptyFile, MalformedFile
from keepsight.eval.image_ids import ImageId
from keepsight.eval.json_files import (
    as_text,
    one_object,
    read_entries,
    read_image_id,
    read_text,
    short,
)
from keepsight.eval.xlsx_files import is_workbook


@dataclass(frozen=True)
class Caption:
    """A caption of an image.

    Attributes:
        image_id: the image.
        caption: the text of the caption.
        method: the method that made the caption, if the file names it.
        where: file and line of the caption.
    """

    image_id: ImageId
    caption: str
    method: str | None = None
    where: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionFile(Form):
    """The captions of a file, and the form in which they were found.

    Attributes:
        captions: the captions in the order of the file.
        failed: the places of captions that the model failed to make.
        image: the key of the images; None where they stand in lmms-eval's metrics.
    """

    captions: tuple[Caption, ...]
    failed: tuple[str, ...]
    image: str | None

    def words(self) -> str:
        """Return the form in words, as commands print it after the name of the file."""
        images = "its metrics" if self.image is None else repr(self.image)
        return f"{self.shape.writer}: captions from {self.shape.answer!r}, images from {images}"

    def to_json(self) -> dict[str, Any]:
        """Return the file's name and its form as values that JSON can hold."""
        return {
            "file": self.path.name,
            "form": self.shape.writer,
            "caption": self.shape.answer,
            "image": self.image,
        }


def read_captions(path: str | Path, *, method: str | None = None) -> list[Caption]:
    """Return the captions that `read_caption_file` finds, without the failures."""
    return list(read_caption_file(path, method=method).captions)


def read_caption_file(
    path: str | Path,
    *,
    method: str | None = None,
    caption_key: str | None = None,
    image_key: str | None = None,
) -> CaptionFile:
    """Read the captions of a file, and the places of those that the model failed to make.

    The file holds JSON lines, a JSON list (COCO's results), or the rows of a workbook (.xlsx), in one of the forms of
    `answer_shapes.CAPTIONS`; or it is one JSON object, whose captions stand in the list `sentences` (the output of the
    official CHAIR scripts) or in the object `imgToEval` (the captions of 2018). `image_ids.image_id` says how images are
    named. A key `method` names the method that made the caption; further keys are ignored. An answer that failed (`answer`
    is null and `error` is not) is neither a caption nor an empty caption.

    Args:
        path: the file.
        method: the method whose captions are kept; None keeps all, which must then be of one method.
        caption_key: the key of the captions; by default the form of the file decides.
        image_key: the key of the images; by default the form of the file decides.

    Raises:
        EmptyFile: the file holds no caption (of that method).
        AmbiguousKeys: several keys could hold the captions, and the form of the file is not known.
        MalformedFile: the file is not JSON, an entry is not an object, or a key is missing or has a value of the wrong
            type; the message names file and line.
        DuplicateImage: an image is captioned twice, or by several methods while none was chosen.
        MissingData: the file is a workbook, and openpyxl is not installed.
    """
    path = Path(path)
    writer, entries = _entries(path)
    if not entries:
        raise EmptyFile(f"{path}: holds no caption")
    shape = choose(entries, CAPTIONS, path, key=caption_key, option="--caption-key")
    # A file that is one object is known by it, and its entries hold further keys of the script that wrote it.
    shape = replace(shape, writer=writer) if writer is not None else shape
    if image_key is not None:
        check_key(image_key, entries, path, "--image-key")
        shape = replace(shape, image=(image_key,))
    found: list[Caption] = []
    lost: list[str] = []
    for where, entry in entries:
        if failed(entry, shape) and (shape.writer in HARNESSES or entry.get(shape.answer) is None):
            # A failure of another method than the chosen one says nothing about the captions that are kept.
            lost += [where] if method in (None, entry.get("method")) else []
            continue
        caption = _caption(entry, shape, where)
        if method is None or caption.method == method:
            found.append(caption)
    # A file in which every caption failed is not scored as a file of empty captions.
    if not found:
        of_method = "" if method is None else f" by the method {method!r}"
        all_failed = f" ({len(lost)} failed)" if lost else ""
        raise EmptyFile(f"{path}: holds no caption{of_method}{all_failed}")
    _refuse_duplicates(found, path)
    image = next((key for key in shape.image if any(key in entry for _, entry in entries)), None)
    return CaptionFile(path=path, shape=shape, captions=tuple(found), failed=tuple(lost), image=image)


CAPTIONS_2018 = "imgToEval, captions of 2018"


def _entries(path: Path) -> tuple[str | None, Entries]:
    """Return the entries of a file, and the name of its form if it is one object that holds them."""
    if is_workbook(path):
        return None, read_answer_entries(path)
    text = read_text(path)
    whole = one_object(text) if text.lstrip().startswith("{") else None
    if whole is not None and isinstance(whole.get("sentences"), list):
        return OFFICIAL_CHAIR, [
            (f"{path}, sentence {number}", entry) for number, entry in enumerate(whole["sentences"], start=1)
        ]
    if whole is not None and isinstance(whole.get("imgToEval"), dict):
        return CAPTIONS_2018, [
            (f"{path}, image {short(image)}", _with_id(image, entry))
            for image, entry in whole["imgToEval"].items()
        ]
    return None, list(read_entries(text, path))


def _with_id(image: str, entry: Any) -> Any:
    """Return an entry of `imgToEval`, whose key is the image's id if the entry does not repeat it."""
    return {"image_id": image, **entry} if isinstance(entry, dict) else entry


def _caption(entry: Mapping[str, Any], shape: Shape, where: str) -> Caption:
    """Return the caption of one entry of the file."""
    key = next((key for key in shape.image if key in entry), None)
    image: ImageId | None = None if key is None else read_image_id(entry, where, key)
    if image is None and shape.writer == LMMS_EVAL:
        image = _metric_image(entry, where)
    if image is None:
        keys = ", ".join(map(repr, entry)) or "none"
        raise MalformedFile(
            f"{where}: the key {shape.image[0]!r} is missing (keys: {keys}); another key of the image is named with"
            " --image-key"
        )
    text = as_text(value_of(entry, shape, where), shape.answer, where)
    method = entry.get("method")
    if method is not None and not isinstance(method, str):
        raise MalformedFile(f"{where}: 'method' must be a text, not {json.dumps(method)[:40]}")
    return Caption(image, text, method, where)


def _metric_image(entry: Mapping[str, Any], where: str) -> ImageId | None:
    """Return the image that lmms-eval's metrics of CHAIR keep; None if they keep none."""
    for value in entry.values():
        if isinstance(value, dict) and "image_id" in value:
            return read_image_id(value, where)
    return None


def _refuse_duplicates(captions: list[Caption], path: Path) -> None:
    """Raise `DuplicateImage` if an image has two captions; the message depends on whether they are of one method."""
    first: dict[ImageId, Caption] = {}
    for caption in captions:
        known = first.setdefault(caption.image_id, caption)
        if known is caption:
            continue
        # A file of several methods captions every image several times. Naming the first duplicate would not help there.
        if known.method != caption.method:
            methods = ", ".join(sorted({str(entry.method) for entry in captions}))
            raise DuplicateImage(
                f"{path}: holds captions of several methods ({methods}); choose one with --method (method=)"
            )
        raise DuplicateImage(
            f"{caption.where}: image {caption.image_id} was captioned before ({known.where}): keep one"
        )
