"""Read captions from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepsight.eval.errors import DuplicateImage, EmptyFile, MalformedFile
from keepsight.eval.image_ids import ImageId
from keepsight.eval.json_files import check_utf8, read_entries, read_image_id, read_text, require


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


def read_captions(path: str | Path, *, method: str | None = None) -> list[Caption]:
    """Return the captions that `read_captions_and_failures` finds, without the failures."""
    return read_captions_and_failures(path, method=method)[0]


def read_captions_and_failures(
    path: str | Path, *, method: str | None = None
) -> tuple[list[Caption], list[str]]:
    """Read the captions of a file, and the places of those that the model failed to make.

    The file holds JSON lines, or a JSON list (COCO's results), of objects with the keys `image_id` (see
    `image_ids.image_id`) and `caption`, or `answer` as `keepsight run` writes it. A key `method` names the method that
    made the caption; further keys are ignored. An answer that failed (`answer` is null and `error` is not) is neither a
    caption nor an empty caption.

    Args:
        path: the file.
        method: the method whose captions are kept; None keeps all, which must then be of one method.

    Returns:
        The captions in the order of the file, and the places ("file:line") of the failures.

    Raises:
        EmptyFile: the file holds no caption (of that method).
        MalformedFile: the file is not JSON, an entry is not an object, or a key is missing or has a value of the wrong
            type; the message names file and line.
        DuplicateImage: an image is captioned twice, or by several methods while none was chosen.
    """
    path = Path(path)
    found: list[Caption] = []
    failed: list[str] = []
    for where, entry in read_entries(read_text(path), path):
        if isinstance(entry, dict) and entry.get("error") is not None and entry.get("answer") is None:
            # A failure of another method than the chosen one says nothing about the captions that are kept.
            failed += [where] if method in (None, entry.get("method")) else []
            continue
        caption = _caption(entry, where)
        if method is None or caption.method == method:
            found.append(caption)
    # A file in which every caption failed is not scored as a file of empty captions.
    if not found:
        of_method = "" if method is None else f" by the method {method!r}"
        all_failed = f" ({len(failed)} failed)" if failed else ""
        raise EmptyFile(f"{path}: holds no caption{of_method}{all_failed}")
    _refuse_duplicates(found, path)
    return found, failed


def _caption(entry: Any, where: str) -> Caption:
    """Return the caption of one entry of the file."""
    image = read_image_id(entry, where)
    key = "answer" if "answer" in entry and "caption" not in entry else "caption"
    text = require(entry, key, where)
    method = entry.get("method")
    if not isinstance(text, str):
        raise MalformedFile(f"{where}: {key!r} must be a text, not {json.dumps(text)[:40]}")
    check_utf8(text, key, where)
    if method is not None and not isinstance(method, str):
        raise MalformedFile(f"{where}: 'method' must be a text, not {json.dumps(method)[:40]}")
    return Caption(image, text, method, where)


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
