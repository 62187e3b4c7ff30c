"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from keepsight.errors import InputError


class CannotWrite(InputError):
    """An output file has no folder, or may not be written."""


def check_writable(path: Path) -> None:
    """Raises ``CannotWrite`` now rather than after minutes of work; nothing is left behind."""
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
    """Write ``text`` so that whoever opens ``path`` sees the old file or the whole new one."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp gives the file to its owner alone; a result is as public as any other new file
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
    """Indented JSON with a final newline; a value that JSON cannot hold (NaN) is an error, not a word."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
