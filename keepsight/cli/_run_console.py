"""Prints what ``keepsight run`` says: its progress, and a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from keepsight.experiments.runner import Progress
    from keepsight.experiments.store import Run

EVERY = 30.0
"""The seconds between two lines on progress where stderr is no terminal."""


@contextmanager
def shown(processes: int, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show progress on stderr: in a terminal as a bar with the time left, elsewhere as a line now and then.

    Yields the function that is called with the progress.

    Args:
        processes: how many processes share the run. The first of them shows its own share.
        quiet: whether nothing is shown.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar(processes) as tell:
            yield tell
    else:
        yield _lines(processes)


@contextmanager
def _bar(processes: int) -> Iterator[Callable[[Progress], None]]:
    """The bar; yields the function that moves it on."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("warming up", total=None)

        def tell(progress: Progress) -> None:
            bar.update(
                task,
                description=describe(progress, processes),
                total=progress.total,
                completed=progress.done,
            )

        yield tell


def describe(progress: Progress, processes: int) -> str:
    """The text before the bar."""
    share = f", the first of {processes} processes" if processes > 1 else ""
    return "answering" + share + (f", {progress.failed} failed" if progress.failed else "")


def _lines(processes: int) -> Callable[[Progress], None]:
    """A function that prints a line on progress now and then."""
    begun = last = time.monotonic()

    def tell(progress: Progress) -> None:
        """Print a line, if the last one is long enough ago and answers are left."""
        nonlocal begun, last
        now = time.monotonic()
        # The first call comes after the warm-up, which therefore does not count for the time that is left.
        if not progress.done:
            begun = now
        if progress.done and progress.done < progress.total and now - last >= EVERY:
            last = now
            left = (now - begun) / progress.done * (progress.total - progress.done)
            share = f" of the first of {processes} processes" if processes > 1 else ""
            failed = f", {progress.failed} failed" if progress.failed else ""
            print(
                f"{progress.done} of {progress.total} answers{share}{failed}, about {_span(left)} left",
                file=sys.stderr,
                flush=True,
            )

    return tell


def _span(seconds: float) -> str:
    """A time span in seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summarise(console: Console, finished: Run) -> None:
    """Print what was answered, what failed, and how long each alternative took beside the baseline."""
    from rich.markup import escape
    from rich.table import Table

    bench = finished.manifest["bench"]
    asked, pictures = len(finished.items), len({item.image_id for item in finished.items})
    console.print(
        f"[bold]{bench['name']}[/bold], {escape(bench['source'])}: {asked} questions about {pictures} pictures"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, heading in enumerate(("", "answers", "failed", "tokens", "seconds", "cost")):
        table.add_column(heading, justify="right" if at else "left", overflow="fold")
    costs = {method: _seconds(finished, method) for method in finished.methods}
    base = costs.get(finished.baseline or "")
    for method in finished.methods:
        good = [answer for answer in finished.answers(method) if not answer.failed]
        tokens = sum(answer.tokens or 0 for answer in good) / len(good)
        failed = len(finished.failed(method))
        table.add_row(
            f"[bold]{escape(method)}[/bold]",
            str(len(good)),
            f"[red]{failed}[/red]" if failed else "0",
            f"{tokens:.1f}",
            f"{costs[method]:.3f}",
            f"{costs[method] / base:.2f}×" if base else "–",
        )
    console.print(table)
    console.print(
        "tokens, seconds: those of an answer on average. cost: seconds over the baseline's, batches interleaved.",
        style="dim",
    )
    failed = sum(len(finished.failed(method)) for method in finished.methods)
    if failed:
        console.print(
            f"{failed} failed and are in no score; the same command with --retry-failed asks them again.",
            style="red",
        )
    console.print(f"Answers are in {escape(str(finished.folder))}", style="dim")


def _seconds(finished: Run, method: str) -> float:
    """The mean seconds of an answer of ``method``."""
    taken = [answer.seconds for answer in finished.answers(method) if answer.seconds is not None]
    return sum(taken) / len(taken)
