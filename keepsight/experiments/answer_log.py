"""Appends answers to a file so that a killed process loses none of them, and so that no two processes write to one file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from keepsight.experiments.errors import CannotRecord, RunInUse
from keepsight.experiments.store import Answer, whole_lines

if TYPE_CHECKING:
    from typing_extensions import Self


@contextmanager
def claim_rank(folder: Path, rank: int) -> Iterator[None]:
    """Claim to be process ``rank`` of the run in ``folder`` for as long as the block lasts.

    The claim is a file lock, which the operating system releases when the process dies. The process with rank 0 also
    makes sure that no process of an earlier start of the run is still writing.

    Raises:
        RunInUse: another process holds the claim.
        CannotRecord: the folder cannot be written.
    """
    if rank == 0:
        # An earlier start may have had more processes than this one, so the locks of all ranks are tried and not only
        # those of this start. Each is released at once, because the process with that rank has yet to claim it.
        for path in folder.glob(".rank*.lock"):
            with _lock(path, folder):
                pass
    with _lock(folder / f".rank{rank}.lock", folder):
        yield


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock file at ``path`` while the block lasts; ``folder`` is what the errors name."""
    # A run that is in use stays so for minutes or hours, so the command refuses at once instead of waiting for the
    # lock.
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunInUse(
            f"another process is writing into {folder}: wait until it is done, or stop it"
        ) from None
    except OSError as error:
        raise CannotRecord(f"cannot write into {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class AnswerLog:
    """A file of answers that is open for appending, to be used in a ``with`` block.

    A last line that an earlier process left half-written is cut off when the file is opened.

    Args:
        path: the file, which is made if it does not exist.

    Raises:
        CannotRecord: the file cannot be opened, read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named():
            self._file = path.open("ab+")
            self._file.seek(0)
            data = self._file.read()
            # Without this cut the first new answer would be appended to the torn line, and both would be lost to every
            # reader.
            self._file.truncate(whole_lines(data))
            self._file.seek(0, os.SEEK_END)

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers, one line each.

        Each line is handed to the operating system at once, so that a killed process loses none. When the method
        returns, all of them are on disk, so that a machine that loses its power keeps them as well.

        Raises:
            CannotRecord: the disk is full, for example.
        """
        with self._named():
            for answer in answers:
                self._file.write(answer.to_line().encode())
                self._file.flush()
            # A disk is forced once for each batch and not for each line, because waiting for the disk is slow.
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._named():
            # Closing may flush, and so may fail for want of space like any other write.
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn an ``OSError`` inside the block into a ``CannotRecord`` that names the file."""
        try:
            yield
        except OSError as error:
            raise CannotRecord(
                f"cannot write {self._path}: {error.strerror or error}; what is written stays, run again to go on"
            ) from error
