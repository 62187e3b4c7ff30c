"""How figures drawn with Pillow are lettered and coloured: words, lines of them, and the letters Pillow has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

PAPER, CARD, INK, SOFT, LINE, ABSENT = "#fbfaf7", "#f1efe9", "#211f2d", "#6b6779", "#d9d5cc", "#c22f3d"
BEFORE, AFTER = "#6b6779", "#3563c9"
AFTERS = (AFTER, "#0c8571", "#8a46b8", "#b8660f", "#ad2f74")
"""Colours of several alternatives, the same as on the pages."""
SMOOTH = 4
"""Curves are drawn this many times larger and shrunk, since Pillow's own have hard edges."""


class Piece(NamedTuple):
    """A word of a line, with how it is drawn."""

    text: str
    colour: str = INK
    struck: bool = False


def plain_pieces(text: str, colour: str = SOFT) -> list[Piece]:
    return [Piece(part, colour) for part in text.split()]


def wrap(pieces: Sequence[Piece], room: float, size: int) -> Iterator[list[Piece]]:
    """Lines that fit into ``room``; a mark such as a full stop stays with the word before it."""
    line: list[Piece] = []
    for piece in pieces:
        if line and measure([*line, piece], size) > room:
            yield line
            line = []
        line.append(piece)
    if line:
        yield line


def measure(pieces: Sequence[Piece], size: int) -> float:
    return sum(font(size).getlength(_spaced(i, piece)) for i, piece in enumerate(pieces))


def write_pieces(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], pieces: Sequence[Piece], size: int
) -> None:
    x, y = at
    for i, piece in enumerate(pieces):
        text = _spaced(i, piece)
        indent = font(size).getlength(text) - font(size).getlength(printable(piece.text))
        write(pen, (x, y), text, size, piece.colour)
        x += font(size).getlength(text)
        if piece.struck:
            middle = y + 0.62 * size
            pen.line(
                [(x - font(size).getlength(text) + indent, middle), (x, middle)], fill=piece.colour, width=2
            )


def _spaced(index: int, piece: Piece) -> str:
    return printable(piece.text) if index == 0 or piece.text[0] in ".,;:!?" else " " + printable(piece.text)


def write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str = INK) -> None:
    pen.text(at, printable(text), font=font(size), fill=colour)


def shorten(text: str, room: float, size: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``room``."""
    text = printable(text)
    if font(size).getlength(text) <= room:
        return text
    while text and font(size).getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def printable(text: str) -> str:
    """``text`` in the letters that Pillow's own font has: accents go, other scripts become question marks."""
    dashes = text.translate(str.maketrans("–—−‑×", "----x"))
    letters = (c for c in unicodedata.normalize("NFKD", dashes) if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in "…·“”‘’" else "?" for c in letters)


def font(size: int) -> FreeTypeFont:
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded
