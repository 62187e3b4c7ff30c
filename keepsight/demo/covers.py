"""Draws what stands in front of objects: cartons, screens, curtains, hedges, brick piers and clouds.

No cover may look like one of the 28 objects, because the scene's ground truth does not list it.
"""

from __future__ import annotations

import random
from functools import lru_cache

from PIL import Image

from keepsight.demo.pen import Pen, Point, darken, lighten

# Three colours of each cover, which ``way`` chooses from
COLOURS: dict[str, tuple[str, ...]] = {
    "carton": ("#c89a66", "#b5845a", "#d6b288"),
    "screen": ("#eadfc6", "#dfe3cf", "#ecd5bf"),
    "curtain": ("#c9796a", "#7f9fb8", "#d9b878"),
    "hedge": ("#5f9a58", "#4f8a5f", "#7da552"),
    "pier": ("#b8705a", "#a8887a", "#93867f"),
    "cloud": ("#ffffff", "#f4f4f8", "#fff6ea"),
}
# How far, in pixels, the bumpy edge of a cover reaches beyond the area that it has to hide
LEAD = {"hedge": 3, "cloud": 5, "screen": 1}
MARGIN = 8
"""By how many pixels the image of a cover is larger on every side than the area that it hides, for bumps and borders."""


@lru_cache(maxsize=6_000)
def raise_cover(kind: str, width: int, height: int, way: int) -> Image.Image:
    """A cover that hides every pixel of an area, as an RGBA image that is ``MARGIN`` pixels larger on every side.

    The same arguments give the same pixels: the image is drawn into the picture, and used again to measure what it hides.

    Args:
        kind: one of ``COLOURS``.
        width, height: the size of the area in pixels.
        way: which of the three colours it has; any number is taken modulo 3.
    """
    pen = Pen(width, height, 4, pad=MARGIN)
    _PAINTERS[kind](pen, float(width), float(height), COLOURS[kind][way % 3])
    return pen.image.reduce(4)


def _carton(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a cardboard box with a strip of tape."""
    # The min() of this and other covers keeps borders and shades within covers that are only a few pixels wide or high
    p.rect(0, 0, w, h, fill)
    p.rect(0, 0, w, min(3.2, h), lighten(fill, 0.22))
    p.rect(0, min(3.2, h), w, min(4, h), darken(fill, 0.25))
    p.rect(w - min(3.0, w / 4), 0, w, h, darken(fill, 0.14))
    middle = w / 2
    p.rect(middle - 1.8, 0, middle + 1.8, h * 0.55, lighten(fill, 0.5))
    p.rect(0, h - 1, w, h, darken(fill, 0.3))


def _screen(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a room divider: a diagonal lattice before paper, in a wooden frame. Panels would look like a refrigerator."""
    wood = "#8a5f42"
    p.rect(-1, -1, w + 1, h, wood, 0.6)
    p.rect(1, 1, w - 1, h - 2, fill)
    lattice = darken(fill, 0.3)
    reach = h - 3
    start = -reach  # the first lines begin outside, so that the lattice reaches all corners
    while start < w:
        for rising in (False, True):
            x0, x1 = (start + reach, start) if rising else (start, start + reach)
            inside = _clip(x0, 1.0, x1, h - 2, 1.0, w - 1)
            if inside:
                p.line(inside, lattice, 0.8)
        start += 6


def _clip(x0: float, y0: float, x1: float, y1: float, low: float, high: float) -> list[Point]:
    """The part of a slanted line whose x lies between ``low`` and ``high``, as two points, or an empty list."""
    ends = sorted((min(1.0, max(0.0, (low - x0) / (x1 - x0))), min(1.0, max(0.0, (high - x0) / (x1 - x0)))))
    if ends[1] - ends[0] < 1e-6:
        return []
    return [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends]


def _curtain(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a curtain in folds that hangs on a rail."""
    folds = max(2, int(w // 5))
    for i in range(folds):
        x0, x1 = i * w / folds, (i + 1) * w / folds
        p.rect(x0, 0, x1, h, fill)
        p.rect(x0, 0, x0 + (x1 - x0) * 0.4, h, darken(fill, 0.12))
        p.pie(x0, h - 2.4, x1, h + 2.4, 0, 180, darken(fill, 0.06))
    p.rect(-2, -2, w + 2, 0.6, "#6b5040", 1)


def _hedge(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a hedge with leaves and a bumpy upper edge."""
    # Seeded by the size, so that a hedge is the same whenever it is drawn
    dice = random.Random(round(w * 131 + h))
    deep, light = darken(fill, 0.22), lighten(fill, 0.16)
    p.rect(-1, 0, w + 1, h, deep, 2)
    steps = max(2, round(w / 7))
    for i in range(steps + 1):
        p.dot(i * w / steps, 1.4, 4.8 + dice.uniform(-0.4, 0.4), deep)
    for side in range(6, int(h), 7):
        p.dot(0.4, side, 3.8, deep)
        p.dot(w - 0.4, side, 3.8, deep)
    p.rect(1, 2, w - 1, h - 3, fill, 3)
    for i in range(steps + 1):
        p.dot(i * w / steps, 1.4, 3.7, fill)
    for _ in range(int(w * h / 45) + 3):
        x, y = dice.uniform(1, w - 1), dice.uniform(0, max(1.0, h - 4))
        p.dot(x, y, 1.5, light if dice.random() < 0.6 else deep)


def _pier(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a brick pier with a capstone."""
    p.rect(0, 0, w, h, darken(fill, 0.3))
    for row in range(int(h // 4) + 1):
        shift = -3.5 if row % 2 else 0.0
        for column in range(int(w // 7) + 2):
            x0 = max(0.0, column * 7 + shift)
            x1 = min(w, column * 7 + shift + 6.4)
            if x1 > x0 and row * 4 < h:
                p.rect(
                    x0, row * 4, x1, min(h, row * 4 + 3.4), lighten(fill, 0.1) if (row + column) % 3 else fill
                )
    p.rect(-1.6, -1.6, w + 1.6, min(2.4, h), lighten(fill, 0.55), 0.6)


def _cloud(p: Pen, w: float, h: float, fill: str) -> None:
    """Draw a cloud with a shaded underside."""
    shade = darken(fill, 0.09)
    puff = min(7.0, h / 2)
    p.rect(-7, h - 2 * puff + 2, w + 7, h + 2, shade, puff)
    for sink, colour in ((2.0, shade), (0.0, fill)):
        p.rect(-1, 1 + sink, w + 1, h - 1, colour, min(9.0, h / 2.2, w / 3))
        for x, size in ((0.16, 0.2), (0.44, 0.3), (0.76, 0.24)):
            radius = min(size * w, 13.0)
            lift = 7 if x == 0.44 else 3
            p.dot(x * w, radius - lift + sink, radius, colour)
        for y in range(round(h - puff), 4, -9):
            p.dot(1, y, min(7.0, puff), colour)
            p.dot(w - 1, y, min(7.0, puff), colour)


_PAINTERS = {
    "carton": _carton,
    "screen": _screen,
    "curtain": _curtain,
    "hedge": _hedge,
    "pier": _pier,
    "cloud": _cloud,
}
