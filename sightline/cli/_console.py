"""What the commands share in talking to a person: a quiet transformers, a progress bar, captions with marked words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Marked(Protocol):
    """A stretch of a caption to be marked: where it stands."""

    @property
    def span(self) -> tuple[int, int]: ...


def quiet_transformers(*, bars: bool = False) -> None:
    """Stop transformers from writing advice between a command's own lines; its errors still surface.

    Args:
        bars: leave its bars, which tell how far a download is, where stderr is a terminal.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        logging.disable_progress_bar()


def use_one_thread() -> None:
    """For the demo model, on whose tiny tensors a second thread gives nothing and, on a busy machine, waits for its turn.

    Measured beside two other busy processes on two cores: greedy took 1.5 s with one thread and 68 s with two.
    """
    import torch

    torch.set_num_threads(1)


@contextmanager
def progress(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that the yielded function moves on; nothing at all where stderr is no terminal."""
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
