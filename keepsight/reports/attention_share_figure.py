"""Draws the share of attention that goes to the picture at each generated token, before and after methods act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from keepsight.reports.pillow_text import (
    INK,
    LINE,
    PAPER,
    SMOOTH,
    SOFT,
    notes_on_fonts,
    plain_pieces,
    shorten,
    text_width,
    wrap,
    write,
    write_pieces,
)

TITLE = "The picture's share of attention, token by token"
HEIGHT = 262
"""The height of the plot with its title and axis, in pixels."""
OVER, UNDER, LEFT = 58, 44, 58
"""The pixels around the plot area: above it for the title, below it for the axis, and left of it for the scale."""
WIDTH, MARGIN = 1100, 48
"""The width and the margin of a figure that holds the plot alone, in pixels."""
FEWEST = 2
"""How many points a line needs; a single token is drawn as a dot."""


class Mark(NamedTuple):
    """A token that is marked with a dot.

    Args:
        token: the number of the token, from 0.
        word: the word that begins with it.
        colour: the colour of the word.
    """

    token: int
    word: str
    colour: str = INK


class Curve(NamedTuple):
    """A line of the plot.

    Args:
        name: what the legend calls the line.
        colour: the colour of the line.
        shares: the shares in [0, 1], one for each generated token.
        marks: the tokens that are marked with a dot.
        solid: how many tokens are drawn in the full colour; from there on the line is pale. None: all of them.
    """

    name: str
    colour: str
    shares: Sequence[float]
    marks: Sequence[Mark] = ()
    solid: int | None = None


def strip(canvas: Image.Image, at: tuple[int, int], wide: int, curves: Sequence[Curve]) -> None:
    """Draw the plot into a part of ``canvas``; its scale runs from 0 to 100 %.

    Args:
        canvas: the image to draw on.
        at: the upper left corner of the plot.
        wide: the width of the plot in pixels; its height is `HEIGHT`.
        curves: at least one, with at least one share each.
    """
    pen = ImageDraw.Draw(canvas)
    x, y = at
    write(pen, (x, y), TITLE, 19)
    _legend(pen, (x + wide, y + 4), curves, wide - text_width(TITLE, 19) - 40)
    left, top = x + LEFT, y + OVER
    across, tall = wide - LEFT - 8, HEIGHT - OVER - UNDER
    for percent in (0, 50, 100):
        line = top + tall - tall * percent / 100
        pen.line([(left, line), (left + across, line)], fill=LINE)
        label = f"{percent} %"
        write(pen, (left - 10 - text_width(label, 15), line - 10), label, 15, SOFT)
    longest = max(len(curve.shares) for curve in curves)
    # A single token has no distance to another.
    step = across / max(longest - 1, 1)
    for number in ticks(longest):
        place = left + (number - 1) * step
        pen.line([(place, top + tall), (place, top + tall + 4)], fill=SOFT)
        label = "token 1" if number == 1 else str(number)
        # Labels are centred below their ticks, except for the first, which would reach below the scale on its left.
        write(pen, (place - text_width(label, 15) * (number > 1) / 2, top + tall + 8), label, 15, SOFT)
    for curve in curves:
        spots = [
            (token * step, tall * (1 - min(max(share, 0), 1))) for token, share in enumerate(curve.shares)
        ]
        _line(canvas, (left, top), (across, tall), spots, curve)
    taken: list[tuple[float, float, float, float]] = []
    # The last curve shows what the methods did. Where there is no room for all words, its words get their places first.
    for place, curve in reversed(list(enumerate(curves))):
        for mark in curve.marks:
            spot = (left + mark.token * step, top + tall * (1 - curve.shares[mark.token]))
            # The plain model's words stand below its curve and those of the methods above theirs, so that they seldom
            # collide.
            _word(pen, spot, mark, above=place > 0 or len(curves) == 1, taken=taken)


def ticks(longest: int) -> list[int]:
    """The numbers of the tokens, from 1, that the axis names: the first, and at most about twelve round ones."""
    step = next((step for step in (5, 10, 20, 50, 100, 200) if longest / step <= 12), 500)
    return [1, *range(step, longest + 1, step)]


def share_figure(curves: Sequence[Curve], *, heading: str, notes: Sequence[str]) -> Image.Image:
    """A figure of the curves alone, RGB and `WIDTH` pixels wide, with a heading and with notes at its foot."""
    told = [
        line
        for note in (*notes, *notes_on_fonts([heading]))
        for line in wrap(plain_pieces(note), WIDTH - 2 * MARGIN, 16)
    ]
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + 44 + HEIGHT + 24 + 23 * len(told)), PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, (MARGIN, MARGIN - 10), shorten(heading, WIDTH - 2 * MARGIN, 24), 24)
    strip(canvas, (MARGIN, MARGIN + 44), WIDTH - 2 * MARGIN, curves)
    y = MARGIN + 44 + HEIGHT + 24
    for line in told:
        write_pieces(pen, (MARGIN, y), line, 16)
        y += 23
    return canvas


def _legend(
    pen: ImageDraw.ImageDraw, right: tuple[float, float], curves: Sequence[Curve], room: float
) -> None:
    """Write the names of the curves from right to left, ``room`` pixels wide at most; ``right`` is the upper right
    corner."""
    x, y = right
    # The names are set from the right edge to the left, so the last one is written first.
    for curve in reversed(curves):
        name = shorten(curve.name, room / len(curves) - 60, 16)
        x -= text_width(name, 16)
        write(pen, (x, y), name, 16, curve.colour)
        pen.line([(x - 34, y + 11), (x - 10, y + 11)], fill=curve.colour, width=3)
        x -= 60


def _line(
    canvas: Image.Image,
    corner: tuple[int, int],
    size: tuple[int, int],
    spots: Sequence[tuple[float, float]],
    curve: Curve,
) -> None:
    """Draw one curve with its dots.

    Args:
        canvas: the image to draw on.
        corner, size: the plot area.
        spots: the points of the curve, in pixels from the corner.
        curve: the curve.
    """
    # The dots of the first and the last token reach beyond the plot area, so the mask has an edge around it.
    edge = 6
    wide, tall = size[0] + 2 * edge, size[1] + 2 * edge
    mask = Image.new("L", (wide * SMOOTH, tall * SMOOTH), 0)
    pen = ImageDraw.Draw(mask)
    scaled = [((x + edge) * SMOOTH, (y + edge) * SMOOTH) for x, y in spots]
    solid = len(spots) if curve.solid is None else curve.solid
    # The pale part begins at the last solid token and is drawn first, so that the two parts meet without a gap.
    for part, shade in ((scaled[max(solid - 1, 0) :], 90), (scaled[:solid], 255)):
        if len(part) >= FEWEST:
            pen.line(part, fill=shade, width=2 * SMOOTH + 2, joint="curve")
    dots = [mark.token for mark in curve.marks] if len(spots) >= FEWEST else range(len(spots))
    for x, y in (scaled[token] for token in dots):
        pen.ellipse([x - 5 * SMOOTH, y - 5 * SMOOTH, x + 5 * SMOOTH, y + 5 * SMOOTH], fill=255)
    small = mask.resize((wide, tall), Image.Resampling.LANCZOS)
    canvas.paste(Image.new("RGB", (wide, tall), curve.colour), (corner[0] - edge, corner[1] - edge), small)


def _word(
    pen: ImageDraw.ImageDraw,
    spot: tuple[float, float],
    mark: Mark,
    *,
    above: bool,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write the word above or below its dot, unless another word stands there; in the figure of maps every word is named
    anyway."""
    size = 15
    wide = text_width(mark.word, size)
    x, y = spot[0] - wide / 2, spot[1] - 28 if above else spot[1] + 9
    box = (x - 3, y, x + wide + 3, y + 20)
    if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
        return
    taken.append(box)
    write(pen, (x, y), mark.word, size, mark.colour)
