"""Read captions from a file, and read JSON in general for the other readers of the scorers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.errors import DuplicateImage, EmptyFile, MalformedFile
from keepsight.eval.image_ids import ImageId, image_id


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


def read_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every entry of a JSON list or of JSON lines with its place ("file, entry 3" or "file:line").

    Empty lines are skipped.

    Raises:
        MalformedFile: the text, or a line of it, is not JSON.
    """
    # Entries are objects, so that a bracket can only open a list of all of them.
    if text.lstrip().startswith("["):
        for number, entry in enumerate(parse_json(text, str(path)), start=1):
            yield f"{path}, entry {number}", entry
        return
    # `splitlines` would also cut at marks such as U+2028, which JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        InputError: the file cannot be opened or read.
        MalformedFile: the file is not UTF-8 text.
    """
    try:
        # This variant of UTF-8 drops the byte order mark that some editors put in front, and that `json` refuses.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_gzipped_text(path: Path) -> str:
    """Return the text of a UTF-8 file, which is decompressed if its name ends in .gz."""
    if path.suffix != ".gz":
        return read_text(path)
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    # Python reports a wrong header, a file that ends too soon and broken data as three unrelated exceptions.
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MalformedFile(f"{path}: is not gzipped UTF-8 text") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text, or raise `MalformedFile` naming the place `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        spot = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise MalformedFile(f"{where}: is not JSON ({error.msg}, {spot}column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise MalformedFile(f"{where}: is not JSON that can be read ({error})") from error


def require(entry: Any, key: str, where: str) -> Any:
    """Return the value of a key, or raise `MalformedFile` if the entry is no object or lacks the key."""
    if not isinstance(entry, dict):
        raise MalformedFile(f"{where}: an object with {key!r} was expected, not {json.dumps(entry)[:40]}")
    if key not in entry:
        keys = ", ".join(map(repr, entry)) or "none"
        raise MalformedFile(f"{where}: the key {key!r} is missing (keys: {keys})")
    return entry[key]


def read_image_id(entry: Any, where: str) -> ImageId:
    """Return the entry's `image_id`, or raise `MalformedFile` naming the place `where`."""
    try:
        return image_id(require(entry, "image_id", where))
    except MalformedFile:  # raised by `require`, and names the place already
        raise
    except InputError as error:
        raise MalformedFile(f"{where}: {error}") from error


def _caption(entry: Any, where: str) -> Caption:
    """Return the caption of one entry of the file."""
    image = read_image_id(entry, where)
    key = "answer" if "answer" in entry and "caption" not in entry else "caption"
    text = require(entry, key, where)
    method = entry.get("method")
    if not isinstance(text, str):
        raise MalformedFile(f"{where}: {key!r} must be a text, not {json.dumps(text)[:40]}")
    # JSON can escape one half of a surrogate pair ("\ud83d"). Such a text cannot be written to a file in UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedFile(f"{where}: {key!r} holds half a character (position {error.start})") from error
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
