"""Functions that write a file completely or not at all, take its digest, and make JSON without NaN and infinities."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keepsight.errors import InputError


class CannotWrite(InputError):
    """An output file cannot be written, for example because its folder does not exist."""


def check_writable(path: Path) -> None:
    """Check that a file can be written at ``path``, so that a command fails at once rather than after minutes of work.

    The check leaves no file behind.

    Raises:
        CannotWrite: ``path`` is a folder, its folder does not exist, or no file may be made in its folder.
    """
    if path.is_dir():
        raise CannotWrite(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no folder {path.parent}")
    # The trial does what `write_whole` will do: it makes another file in the same folder. An old file at `path` is not
    # opened, since `write_whole` replaces it and needs no permission to write into it.
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, so that a reader sees either the old file or the complete new one.

    Raises:
        CannotWrite: the file cannot be written; the old file is then as it was.
    """
    replace_file(path, (text,))


def replace_file(path: Path, pieces: Iterable[str], *, durable: bool = False) -> None:
    """Replace ``path`` in one step by the pieces, in UTF-8, so that a reader sees either the old file or the new one.

    Args:
        path: the file.
        pieces: its new content, in parts that are written one after the other.
        durable: also wait for the disk, so that the same holds after a crash of the machine.

    Raises:
        CannotWrite: the file cannot be written; the old file is then as it was.
    """
    try:
        # The temporary file stands beside its target, because `os.replace` is atomic only within one file system.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(pieces)
                if durable:
                    file.flush()
                    # Without this the new name could reach the disk before the content, and a crash would leave an
                    # empty file.
                    os.fsync(file.fileno())
            # mkstemp makes a file that only its owner can read, while a result should be as public as any other new file.
            # The mask that decides this can only be read by setting another one, so that it is put back at once.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        # A command that is interrupted (KeyboardInterrupt) must not leave a temporary file behind either.
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises ``InputError`` where it cannot be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            # A file of weights or of annotations may be larger than the memory, so it is read in blocks of 1 MiB.
            while block := file.read(1 << 20):
                found.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found.hexdigest()


def as_json(value: Any) -> str:
    """Return the value as JSON text, indented by two spaces and with a newline at the end.

    Raises:
        ValueError: the value holds NaN or an infinity, which Python would write as words that other readers refuse.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite_or_none(value: float) -> float | None:
    """Return the value itself, or None for NaN and infinities, which JSON cannot hold.

    >>> finite_or_none(0.5), finite_or_none(float("-inf"))
    (0.5, None)
    """
    return value if math.isfinite(value) else None
