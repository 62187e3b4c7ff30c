"""What several commands print: a progress bar, and captions with marked words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Marked(Protocol):
    """A part of a caption that is to be marked, by its span of characters."""

    @property
    def span(self) -> tuple[int, int]: ...


@contextmanager
def progress(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, which the yielded function moves on by a number of steps. Where stderr is no terminal
    there is none.

    Args:
        total: the number of steps.
        doing: what is done, in a word or two.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.advance(task, done)


def mark(caption: str, unsupported: Sequence[Marked], *, colour: bool) -> str:
    """The caption with each unsupported word struck and red, or in brackets where there is no colour."""
    pieces, at = [], 0
    for mention in sorted(unsupported, key=lambda one: one.span):
        start, end = mention.span
        word = caption[start:end]
        pieces += [caption[at:start], f"\x1b[31;9m{word}\x1b[0m" if colour else f"[{word}]"]
        at = end
    return "".join([*pieces, caption[at:]])
