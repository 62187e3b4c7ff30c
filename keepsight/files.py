"""Writing files whole or not at all, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from keepsight.errors import InputError


class CannotWrite(InputError):
    """An output file cannot be written, for example because its folder does not exist."""


def check_writable(path: Path) -> None:
    """Check that a file can be written at ``path``, so that a command fails at once rather than after minutes of work.

    Nothing is left behind. Raises ``CannotWrite`` where the path is a folder, its folder is missing or may not be written.
    """
    if path.is_dir():
        raise CannotWrite(f"{path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no folder {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error


def write_whole(path: Path, text: str) -> None:
    """Write ``text``, in UTF-8, so that whoever opens ``path`` meanwhile sees the old file or the whole new one.

    Raises ``CannotWrite`` where the file cannot be written; the old file is then as it was.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp makes a file that only its owner can read, while a result should be as public as any other new file
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror}") from error


def as_json(value: Any) -> str:
    """The value as indented JSON with a final newline.

    Raises ``ValueError`` for NaN and infinities, which Python would write as words that other readers of JSON refuse.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite_or_none(value: float) -> float | None:
    """The value itself, or None for NaN and infinities, which JSON cannot hold.

    >>> finite_or_none(0.5), finite_or_none(float("-inf"))
    (0.5, None)
    """
    return value if math.isfinite(value) else None
