"""Read JSON for the scorers' readers: entries with their places, and checks whose errors name the place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.errors import MalformedFile
from keepsight.eval.image_ids import ImageId, image_id


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


def one_object(text: str) -> dict[str, Any] | None:
    """Return the value of a text that is one JSON object; None for JSON lines, other values and what is not JSON.

    What is not JSON is left to the reader of lines, whose errors name the line.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def require(entry: Any, key: str, where: str) -> Any:
    """Return the value of a key, or raise `MalformedFile` if the entry is no object or lacks the key."""
    if not isinstance(entry, dict):
        raise MalformedFile(f"{where}: an object with {key!r} was expected, not {json.dumps(entry)[:40]}")
    if key not in entry:
        keys = ", ".join(map(repr, entry)) or "none"
        raise MalformedFile(f"{where}: the key {key!r} is missing (keys: {keys})")
    return entry[key]


def read_image_id(entry: Any, where: str, key: str = "image_id") -> ImageId:
    """Return the image that an entry names under a key, or raise `MalformedFile` naming the place `where`."""
    try:
        return image_id(require(entry, key, where))
    except MalformedFile:  # raised by `require`, and names the place already
        raise
    except InputError as error:
        raise MalformedFile(f"{where}: {error}") from error


def as_text(value: Any, key: str, where: str) -> str:
    """Return the value itself if it is a text that UTF-8 can hold; otherwise raise `MalformedFile`."""
    if not isinstance(value, str):
        raise MalformedFile(f"{where}: {key!r} must be a text, not {short(value)}")
    check_utf8(value, key, where)
    return value


def check_utf8(text: str, key: str, where: str) -> None:
    """Raise `MalformedFile` if UTF-8 cannot hold the text under a key."""
    # JSON can escape one half of a surrogate pair ("\ud83d"). Such a text cannot be written to a file in UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedFile(f"{where}: {key!r} holds half a character (position {error.start})") from error


def short(value: Any) -> str:
    """Return a value as JSON for an error to quote, cut to 58 characters if it has more than 60."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
