"""The files that commands write: refused before the work if they cannot be written, and afterwards whole or not there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keepsight.files import CannotWrite, check_writable, write_whole

STDOUT = Path("-")
"""The name of an output file that stands for standard output."""


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path] = ()) -> None:
    """Check each output that is wanted with ``check_writable``, standard output aside.

    Args:
        outputs: the files to write; None for an output that is not wanted.
        inputs: the files to read.

    Raises:
        CannotWrite: an output cannot be written, is one of the inputs, or is another output.
    """
    taken = {path.resolve(): "is one of the files to read" for path in inputs}
    for path in outputs:
        if path is None:
            continue
        if path != STDOUT:
            check_writable(path)
        # Two ways to write one path, and two outputs that both go to standard output, are found as well.
        if why := taken.get(path.resolve()):
            raise CannotWrite(f"cannot write {path}: it {why}; name another")
        taken[path.resolve()] = "is to be written twice"


def silent(*outputs: Path | None) -> bool:
    """Whether one of the outputs goes to standard output, so that a command prints nothing else there."""
    return STDOUT in outputs


def write(path: Path, text: str) -> None:
    """Write a text to a file, whole, or to standard output.

    Raises:
        CannotWrite: the file cannot be written.
    """
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_whole(path, text)


class JsonLines:
    """JSON lines for ``--json``: on standard output each as soon as it is known, in a file all of them at the end.

    Args:
        path: the file, `STDOUT`, or None for no output.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: list[str] = []

    def add(self, value: dict[str, Any]) -> None:
        """Take one line. Raises ``ValueError`` for a value that JSON cannot hold, such as NaN."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
        if self._path == STDOUT:
            write(STDOUT, line)
        elif self._path is not None:
            self._lines.append(line)

    def close(self) -> None:
        """Write the file, if there is one. Raises ``CannotWrite``."""
        if self._path not in (None, STDOUT):
            # A file is written at the end and whole, so that a command that failed leaves no half of the results.
            write_whole(self._path, "".join(self._lines))
