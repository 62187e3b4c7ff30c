"""Text in the figures that Pillow draws: words, lines of them, colours, and the fonts that have their characters.

Every figure is set in Pillow's own font, which has ASCII and little more. Words with other characters are drawn in a
font of the system or of matplotlib. A character that none of them has is shown by its number, such as ``[U+732B]``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

PAPER, CARD, INK, SOFT, LINE, ABSENT = "#fbfaf7", "#f1efe9", "#211f2d", "#6b6779", "#d9d5cc", "#c22f3d"
BEFORE, AFTER = "#6b6779", "#3563c9"
AFTERS = (AFTER, "#0c8571", "#8a46b8", "#b8660f", "#ad2f74")
"""The colours of several alternatives, the same as on the pages."""
SMOOTH = 4
"""How many times larger curves are drawn before they are shrunk, since Pillow draws them with hard edges."""
NOTO_SCRIPTS = (
    "Arabic",
    "Armenian",
    "Bengali",
    "Devanagari",
    "Ethiopic",
    "Georgian",
    "Gujarati",
    "Hebrew",
    "Kannada",
    "Khmer",
    "Malayalam",
    "Sinhala",
    "Tamil",
    "Telugu",
    "Thai",
)
SYSTEM_FONTS = (
    # Linux
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    *(f"NotoSans{script}-Regular.ttf" for script in NOTO_SCRIPTS),
    # macOS
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    # Windows
    "arial.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
    "LeelawUI.ttf",
)
"""The files of common fonts with many characters, best first. The first that has all characters of a word draws it."""
_SPELLINGS = str.maketrans("–—−‑×", "----x")
"""The marks that figures themselves use, in ASCII, so that figures do not look different with the fonts of the system."""
_PROBE_SIZE = 16
OWN = ""
"""Stands for Pillow's own font where fonts are named by their files."""


class Piece(NamedTuple):
    """A word of a line.

    Args:
        text: the word.
        colour: its colour.
        struck: whether it is struck through.
        glued: whether it continues the word before it without a space.
    """

    text: str
    colour: str = INK
    struck: bool = False
    glued: bool = False


def plain_pieces(text: str, colour: str = SOFT) -> list[Piece]:
    """The words of ``text``, all in one colour."""
    return [Piece(part, colour) for part in text.split()]


def wrap(pieces: Sequence[Piece], room: float, size: int) -> Iterator[list[Piece]]:
    """The pieces in lines of at most ``room`` pixels, for text of ``size`` pixels.

    A word that is wider than a whole line, such as a sentence of a script without spaces, is broken.
    """
    line: list[Piece] = []
    for part in (part for piece in pieces for part in _broken(piece, room, size)):
        if line and measure([*line, part], size) > room:
            yield line
            line = []
        line.append(part)
    if line:
        yield line


def _broken(piece: Piece, room: float, size: int) -> Iterator[Piece]:
    """A word in parts of at most ``room`` pixels; the word itself where it is no wider."""
    rest = piece
    while len(rest.text) > 1 and text_width(rest.text, size) > room:
        fitting = [end for end in range(1, len(rest.text)) if text_width(rest.text[:end], size) <= room]
        # At least one character is taken even where it does not fit, since the rest would never get shorter otherwise.
        end = max(fitting, default=1)
        yield rest._replace(text=rest.text[:end])
        rest = rest._replace(text=rest.text[end:], glued=True)
    yield rest


def measure(pieces: Sequence[Piece], size: int) -> float:
    """The width of a line of pieces in pixels."""
    return sum(text_width(_spaced(i, piece), size) for i, piece in enumerate(pieces))


def write_pieces(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], pieces: Sequence[Piece], size: int
) -> None:
    """Draw a line of pieces; ``at`` is its upper left corner."""
    x, y = at
    for i, piece in enumerate(pieces):
        text = _spaced(i, piece)
        wide = text_width(text, size)
        write(pen, (x, y), text, size, piece.colour)
        if piece.struck:
            # The width includes the space before the word, which is not to be struck.
            start = x + wide - text_width(piece.text, size)
            middle = y + 0.62 * size
            pen.line([(start, middle), (x + wide, middle)], fill=piece.colour, width=2)
        x += wide


def _spaced(index: int, piece: Piece) -> str:
    """The text of a piece with the space before it; there is none at the start of a line and before punctuation."""
    alone = index == 0 or piece.glued or piece.text[0] in ".,;:!?"
    return piece.text if alone else " " + piece.text


def write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str = INK) -> None:
    """Draw ``text``; ``at`` is its upper left corner in Pillow's own font, and other fonts share its baseline."""
    x, y = at
    baseline = y + font(size).getmetrics()[0]
    for run, own in _runs(text, size):
        # Fonts differ in height, so runs are anchored at the baseline (ls): letters of two fonts would
        # otherwise stand at different heights.
        pen.text((x, baseline), run, font=own, fill=colour, anchor="ls")
        x += own.getlength(run)


def text_width(text: str, size: int) -> float:
    """How wide ``text`` is when drawn, in pixels."""
    return sum(own.getlength(run) for run, own in _runs(text, size))


def shorten(text: str, room: float, size: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``room`` pixels."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def notes_on_fonts(texts: Iterable[str]) -> list[str]:
    """What a figure says at its foot if a character of ``texts`` is shown by its number; empty if none is."""
    absent = dict.fromkeys(c for text in texts for c in _composed(text) if not _drawable(c))
    if not absent:
        return []
    first, more = _numbered(next(iter(absent))), len(absent) - 1
    what = f"{first} and {more} more stand for characters" if more else f"{first} stands for a character"
    return [
        f"{what} that no font found on this computer has. The Noto Sans font of the script, once installed, is used."
    ]


def font(size: int) -> FreeTypeFont:
    """Pillow's own font in a size in pixels."""
    loaded = ImageFont.load_default(size)
    # Pillow returns a bitmap font only when it is asked for no size, and annotates both.
    assert isinstance(loaded, ImageFont.FreeTypeFont)
    return loaded


@cache
def fallback_fonts() -> tuple[str, ...]:
    """The files of the fonts besides Pillow's own that are found on this computer, best first."""
    found = []
    # DejaVu Sans comes with matplotlib. The package is only found and not imported, since nothing else of it is needed.
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            found.append(str(file))
    for name in SYSTEM_FONTS:
        # Pillow looks for the name in the font folders of the system, and raises if the font is not installed.
        with suppress(OSError):
            found.append(str(ImageFont.truetype(name, _PROBE_SIZE).path))
    return tuple(dict.fromkeys(found))


def _runs(text: str, size: int) -> list[tuple[str, FreeTypeFont]]:
    """``text`` as it is drawn, in stretches of one font each."""
    found: list[tuple[str, str]] = []
    for number, word in enumerate(_composed(text).split(" ")):
        if number:
            # A space is drawn in the font of the word before it, so that it does not part two words of one font, which are
            # shaped together.
            found.append((" ", found[-1][1] if found else OWN))
        found += _fonts_of(word)
    merged: list[tuple[str, str]] = []
    for part, file in found:
        if merged and merged[-1][1] == file:
            part = merged.pop()[0] + part
        merged.append((part, file))
    return [(part, _sized(file, size)) for part, file in merged]


@lru_cache(maxsize=4096)
def _fonts_of(word: str) -> tuple[tuple[str, str], ...]:
    """A word in stretches with the font of each: one font for the whole word if one has it all, else one for each
    character."""
    # Format characters (Cf) such as joiners have no picture of their own, so a font need not have them to draw the word.
    visible = "".join(c for c in word if unicodedata.category(c) != "Cf")
    if not visible:
        return ()
    if (file := _font_with(visible)) is not None:
        # Joiners shape the letters of some scripts, so other fonts get them. To the ASCII of Pillow's own font they mean
        # nothing.
        return ((visible if file == OWN else word, file),)
    found: list[tuple[str, str]] = []
    for c in visible:
        if (file := _font_with(c)) is not None:
            found.append((c, file))
        else:
            found.append((_without_accents(c) or _numbered(c), OWN))
    return tuple(found)


def _font_with(characters: str) -> str | None:
    """The first font that has all of the characters, as its file; None if no font has."""
    return next(
        (file for file in (OWN, *_fallbacks(characters)) if all(_has(file, c) for c in characters)), None
    )


def _fallbacks(characters: str) -> tuple[str, ...]:
    """The fonts besides Pillow's own that may be needed for some characters."""
    # The search for fonts takes a moment, and texts in ASCII do not need it.
    return () if characters.isascii() else fallback_fonts()


@lru_cache(maxsize=4096)
def _has(file: str, c: str) -> bool:
    """Whether a font, named by its file, has a character."""
    # Pillow does not tell which characters a font has. Those that it lacks are drawn like U+FFFF, which is never assigned.
    own = _probe(file)
    shown, absent = own.getmask(c), own.getmask("\uffff")
    return (shown.size, bytes(shown)) != (absent.size, bytes(absent))


def _drawable(c: str) -> bool:
    """Whether a character is drawn as itself, or in letters that stand for it, and not by its number."""
    return (
        c == " " or unicodedata.category(c) == "Cf" or _font_with(c) is not None or bool(_without_accents(c))
    )


def _without_accents(c: str) -> str:
    """A character in letters of Pillow's own font, such as ``e`` for ``é``; empty where the font has none for it."""
    letters = "".join(part for part in unicodedata.normalize("NFKD", c) if not unicodedata.combining(part))
    return letters if letters != c and all(_has(OWN, part) for part in letters) else ""


def _numbered(c: str) -> str:
    """What is drawn for a character that no font has."""
    return f"[U+{ord(c):04X}]"


def _composed(text: str) -> str:
    """``text`` with accents composed with their letters where Unicode has such letters, and with all white space as
    spaces."""
    composed = unicodedata.normalize("NFC", text.translate(_SPELLINGS))
    return "".join(" " if c.isspace() else c for c in composed)


@cache
def _probe(file: str) -> FreeTypeFont:
    """A font, named by its file, in which characters are drawn to see whether it has them."""
    # The basic layout puts nothing around a mark that stands alone. What other layouts put there would look like a character
    # that the font has.
    return (
        font(_PROBE_SIZE)
        if file == OWN
        else ImageFont.truetype(file, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    )


@cache
def _sized(file: str, size: int) -> FreeTypeFont:
    """A font, named by its file, in a size in pixels."""
    return font(size) if file == OWN else ImageFont.truetype(file, size)
