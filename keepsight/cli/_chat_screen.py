"""What a chat writes: text as it comes, and the same text again with its flagged words once these are known."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keepsight.errors import InputError

if TYPE_CHECKING:
    from keepsight.grounding import WordGrounding

# White space other than space and newline, control characters of both sets, and characters that change the direction of
# writing.
CONTROL = re.compile(r"[^\S \n]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A model's text in which characters that move the cursor, ring a bell or turn writing around are replaced.

    Each is replaced by one character, so that spans of words stay valid.

    >>> harmless("a\\x1b[2Jb")
    'a�[2Jb'
    """
    return CONTROL.sub("�", text)


def rows_of(text: str, width: int) -> int:
    """How many rows of a terminal ``width`` cells wide a text takes.

    >>> rows_of("abcd" + chr(10), 4), rows_of("abcde", 4)
    (2, 2)
    """
    from rich.cells import cell_len

    return sum(max(1, math.ceil(cell_len(line) / width)) for line in text.split("\n"))


class NoInput(InputError):
    """There is nowhere to read questions from, or nowhere to write answers to."""


class Screen:
    """A terminal, or a pipe in its place.

    On a terminal, text streams. When the answer is done, it is written anew with its flagged words marked, if it is no
    taller than the screen; otherwise the flagged words are named below it. Without colours, marks are brackets. On a
    pipe each answer is written once, marked.

    Raises:
        NoInput: standard input or output is closed.
    """

    def __init__(self) -> None:
        # Python sets a stream to None if its file was closed before the process began.
        if sys.stdin is None or sys.stdout is None:
            raise NoInput("standard input or output is closed: chat in a terminal, or through a pipe")
        from rich.console import Console

        self.console = Console(highlight=False, markup=False)
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.streams = sys.stdout.isatty()
        self.rewrites = self.streams and not self.console.is_dumb_terminal
        self._shown = ""

    @property
    def colour(self) -> bool:
        """Whether marks are colours; the environment variable ``NO_COLOR`` turns them off."""
        return self.console.color_system is not None and "NO_COLOR" not in os.environ

    def note(self, text: str, *, strong: bool = False) -> None:
        """Write a remark of the program; a pipe gets none."""
        if self.interactive:
            self.console.print(harmless(text), style="bold" if strong else "dim")

    def refuse(self, text: str) -> None:
        """Write an error in one line on stderr, as the commands do."""
        print("error:", " ".join(harmless(text).split()), file=sys.stderr, flush=True)

    def print(self, text: str) -> None:
        """Write a text in a line of its own."""
        print(text, flush=True)

    def begin(self) -> None:
        """Begin an answer."""
        self._shown = ""

    def say(self, piece: str) -> None:
        """Write a piece of the answer as it comes; on a pipe nothing is written yet."""
        if self.streams:
            piece = harmless(piece)
            self._shown += piece
            print(piece, end="", flush=True)

    def drop(self) -> None:
        """End the line of an answer that was not finished; its text stays on the screen."""
        if self._shown:
            print(flush=True)

    def finish(self, text: str, words: Sequence[WordGrounding], threshold: float) -> None:
        """End an answer, and mark its flagged words.

        Args:
            text: the whole answer.
            words: its object words with their grounding.
            threshold: words with less support are flagged.
        """
        from keepsight.cli.ground import shade

        text = harmless(text)
        marked = shade(self.console, text, words, threshold)
        if not self.streams:
            print(marked.plain, flush=True)
            return
        size = shutil.get_terminal_size()
        rows = rows_of(self._shown, size.columns)
        # The cursor cannot go back to rows that have scrolled off the screen, so a taller answer is left as it is.
        if self.rewrites and rows < size.lines:
            # The cursor stands on the last row of the answer, so it goes up by one row less, and clears all below.
            up = f"\x1b[{rows - 1}A" if rows > 1 else ""
            print(f"{up}\r\x1b[J", end="")
            self.console.print(marked)
        else:
            flagged = [text[slice(*word.span)] for word in words if word.support < threshold]
            print("\n" + " ".join(f"[{word}]" for word in flagged) if flagged else "", flush=True)
