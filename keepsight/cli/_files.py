"""Files that the commands write: refused before the work if they cannot be, whole or not there afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keepsight.files import CannotWrite, check_writable


def check_outputs(outputs: Sequence[Path | None], inputs: Sequence[Path]) -> None:
    """`check_writable` for each output that is wanted; none may be an input, or another output.

    Raises ``CannotWrite``.
    """
    taken = {path.resolve(): "is one of the files to read" for path in inputs}
    for path in outputs:
        if path is None:
            continue
        check_writable(path)
        if why := taken.get(path.resolve()):
            raise CannotWrite(f"cannot write {path}: it {why}; name another")
        taken[path.resolve()] = "is to be written twice"
