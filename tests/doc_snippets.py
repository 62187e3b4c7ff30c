"""The snippets of a Markdown page: which blocks a reader would copy, and how they are run with stand-ins.

A snippet is a block that is fenced with ``python``, ``sh`` or ``console``, or an indented block that begins like one. In
a ``console`` block the lines after ``$`` are commands and the others are what they printed. Everything else (``text``,
``json``, …) is shown to be read, not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RUN = ("python", "sh", "console")
_BEGINNINGS = {
    "python": ("from ", "import "),
    "sh": ("keepsight ", "python ", "torchrun ", "accelerate ", "pip "),
    "console": ("$ ",),
}
_LAUNCHERS = (
    r"torchrun( --\w+ \S+)* -m keepsight ",
    r"accelerate launch( --\w+( \d+)?)* -m keepsight ",
    r"python -m keepsight ",
)


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its lines without the indent, and the number of its first line, from 1."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Stand:
    """What takes the place of what a reader has and a test has not.

    Attributes:
        files: makers of the files that a page takes for granted; each is given the folder and fills it.
        words: words of commands, and what stands for each: ``"val2014": "pictures"``. Several words replace one word
            where the value holds spaces, and an empty value leaves the word out.
        extra: options added to commands that begin with the key, so that they are quick: ``"keepsight run": "--limit 1"``.
        not_run: commands that begin with the key are checked to be whole and are not run; the value says why, and
            the test prints each. A key that no command needs is an error.
    """

    files: Sequence[Callable[[Path], None]] = ()
    words: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)


def blocks(page: str) -> Iterator[Block]:
    """Every fenced and every indented block of a Markdown text; an indented one has a language where it begins like one.

    An indented line continues a list or a paragraph unless an empty line and no list stand before it.
    """
    lines = page.split("\n")
    at, in_list = 0, False
    while at < len(lines):
        line = lines[at]
        if fence := re.fullmatch(r"( *)(```+|~~~+)(.*)", line):
            indent, mark, language = fence.groups()
            end = at + 1
            while end < len(lines) and lines[end].strip() != mark:
                end += 1
            assert end < len(lines), f"line {at + 1}: this fence is never closed"
            held = [one.removeprefix(indent) for one in lines[at + 1 : end]]
            yield Block(language.strip(), "\n".join(held), at + 2)
            at = end + 1
            continue
        if line.startswith("    ") and not in_list and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(one[4:] for one in lines[at:end]).rstrip()
            begins = (name for name, starts in _BEGINNINGS.items() if text.startswith(starts))
            yield Block(next(begins, ""), text, at + 1)
            at = end
            continue
        if line.strip():
            in_list = bool(re.match(r"\s*([-*+]|\d+\.) ", line)) or (in_list and line.startswith(" "))
        at += 1


def commands(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a ``sh`` or ``console`` block with their lines; a backslash at a line's end joins the next."""
    pending, start = "", 0
    for number, line in enumerate(block.text.split("\n"), start=block.line):
        if not pending:
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line.removeprefix("$ ")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        yield start, pending
        pending = ""
    assert not pending, f"line {start}: the command ends in a backslash"


def words(command: str, stand: Stand) -> list[str]:
    """A command as the arguments of ``keepsight``, stand-ins in place. Raises ``AssertionError`` for another program."""
    assert not re.search(r"…|\.\.\.", command), f"not whole: {command}"
    for launcher in _LAUNCHERS:
        command = re.sub(f"^{launcher}", "keepsight ", command)
    for beginning, options in stand.extra.items():
        if command.startswith(beginning):
            command = f"{command} {options}"
    found: list[str] = []
    for word in shlex.split(command, comments=True):
        found += shlex.split(stand.words[word]) if word in stand.words else [word]
    assert found[0] == "keepsight", f"neither keepsight nor in the page's not_run: {command}"
    return found[1:]
