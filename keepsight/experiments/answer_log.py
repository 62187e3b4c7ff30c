"""Writes answers so that a killed process loses none of them, and so that no two processes write into one file."""

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
    """Claim to be process ``rank`` of the run in ``folder`` while the block lasts.

    The claim is a file lock, which the operating system releases when the process dies.

    The first process also makes sure that none of an older start is still writing.

    Raises:
        RunInUse: another process holds the claim.
        CannotRecord: the folder cannot be written.
    """
    if rank == 0:
        for path in folder.glob(".rank*.lock"):
            with _lock(path, folder):
                pass
    with _lock(folder / f".rank{rank}.lock", folder):
        yield


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
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
    """A file of answers that is open for appending; a line that an earlier process left half-written is cut off first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named():
            self._file = path.open("ab+")
            self._file.seek(0)
            data = self._file.read()
            self._file.truncate(whole_lines(data))
            self._file.seek(0, os.SEEK_END)

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers. Each line is handed to the system at once, so that a killed process loses none.

        When this returns, all of them are on disk, so that a machine that loses its power keeps them too.

        Raises:
            CannotRecord: the disk is full, for example.
        """
        with self._named():
            for answer in answers:
                self._file.write(answer.to_line().encode())
                self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._named():
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CannotRecord(
                f"cannot write {self._path}: {error.strerror or error}; what is written stays, run again to go on"
            ) from error
