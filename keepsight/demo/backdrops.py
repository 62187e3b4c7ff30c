"""Paints the five places that objects stand in, each in six moods, and says where their free surfaces are.

Coordinates are pixels of the picture, from its upper left corner. Nothing that is painted here may look like one of the 28
objects, because the scene's ground truth does not list it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from keepsight.demo.pen import Pen, darken, lighten, mix

SIZE = 128
"""Width and height of a picture in pixels."""
MOODS = 6
"""Palettes of each place, by number from 0. The last one is night, and gets another sky and other lights."""


@dataclass(frozen=True)
class Zone:
    """A free surface that objects can be put on.

    Args:
        kind: "floor" (for large things and animals), "top" (for small things) or "air".
        x0, x1: what is put here lies between these, in pixels.
        y0, y1: on a "floor" or "top", the lower edge of things lies between these. In the "air", things lie wholly between
            them.
    """

    kind: str
    x0: float
    x1: float
    y0: float
    y1: float


@dataclass(frozen=True)
class Backdrop:
    """A painted place.

    Args:
        image: the picture, RGB. It is shared, so that it must be copied before anything is drawn on it.
        zones: its free surfaces.
        outdoors: whether it is outdoors.
        light: the colour by which the finished picture is multiplied; white changes nothing.
        haze: the colour of mist in front of objects.
    """

    image: Image.Image
    zones: tuple[Zone, ...]
    outdoors: bool
    light: str
    haze: str


# They match what the painters below draw: worktops, tables, pavements and lawns. A surface that begins at 1 or ends at 127
# reaches the frame of the picture, which may then hide a part of an object
ZONES: dict[str, tuple[Zone, ...]] = {
    "kitchen": (
        Zone("air", 1, 127, 3, 58),
        Zone("top", 1, 127, 64, 67),
        Zone("floor", 1, 127, 97, 103),
        Zone("top", 1, 127, 113, 124),
    ),
    "office": (
        Zone("air", 1, 127, 3, 62),
        Zone("floor", 1, 127, 76, 80),
        Zone("top", 1, 93, 87, 92),
        Zone("top", 1, 97, 110, 120),
        Zone("floor", 96, 127, 84, 124),
    ),
    "living room": (
        Zone("air", 1, 127, 3, 58),
        Zone("top", 3, 59, 64, 66),
        Zone("floor", 58, 127, 84, 94),
        Zone("top", 44, 124, 107, 110),
        Zone("floor", 1, 46, 98, 124),
        Zone("floor", 1, 127, 121, 125),
    ),
    "street": (
        Zone("air", 1, 127, 3, 60),
        Zone("floor", 1, 127, 79, 83),
        Zone("floor", 1, 127, 97, 104),
        Zone("floor", 1, 127, 117, 125),
        Zone("top", 1, 127, 117, 125),
    ),
    "park": (
        Zone("air", 1, 127, 3, 58),
        Zone("floor", 1, 127, 76, 92),
        Zone("floor", 1, 127, 96, 125),
        Zone("top", 6, 78, 108, 122),
    ),
}

# wall, tile joint, cupboard, worktop, floor, light
KITCHENS = (
    ("#f3ead9", "#e2d5bd", "#7fa9a3", "#c99a66", "#d9c7ab", "#ffffff"),
    ("#dfeaf0", "#c7d8e2", "#5f7fa6", "#e4d3b8", "#bcc6cf", "#ffffff"),
    ("#f7dcc4", "#eac6a6", "#b9654f", "#8f5f3f", "#d8b48e", "#fff1dc"),
    ("#dcebd8", "#c3d8be", "#e9e4d6", "#9a6b43", "#c9b897", "#ffffff"),
    ("#e9dff0", "#d6c8e2", "#7d6c9c", "#e3cdb4", "#c8b9cc", "#fff4ea"),
    ("#5f6d8e", "#55627f", "#3f4a69", "#a87b53", "#6f7389", "#e8e6ff"),
)
# wall, floor, desk, frame accent, sky in the window, light
OFFICES = (
    ("#e6e9ef", "#b9a58c", "#d9a76c", "#5f86b8", "#bfe3f2", "#ffffff"),
    ("#cfe0d8", "#a89a86", "#b9794a", "#3f8f83", "#d4eef0", "#ffffff"),
    ("#f4e3cc", "#9c7c62", "#8a5a3c", "#d9774f", "#ffd9a8", "#fff0dc"),
    ("#c9d3e6", "#8d93a6", "#f0e6d6", "#6a6fb0", "#dceaf7", "#ffffff"),
    ("#f0d9d6", "#b08f80", "#c98d5d", "#b0586a", "#ffe1cf", "#fff6ee"),
    ("#4f5878", "#4a4658", "#94694a", "#7f8fd0", "#232b54", "#e6e4ff"),
)
# wall, pattern, floor, rug, cabinet, light
LIVING_ROOMS = (
    ("#f1e3cd", "#e8d5b8", "#b98a5e", "#d8806a", "#8a5f42", "#ffffff"),
    ("#cfe1de", "#bfd5d1", "#a87d57", "#f0e2c6", "#6d4d3a", "#ffffff"),
    ("#f3cfb6", "#ebbf9f", "#94644a", "#7f9a8f", "#5f4336", "#fff0dc"),
    ("#d7dcec", "#c6cde2", "#c3a27c", "#7f8fc0", "#9a7350", "#ffffff"),
    ("#dbe3c5", "#cdd7b3", "#a57a50", "#e8c889", "#6a5038", "#fffdf0"),
    ("#56557a", "#4d4c70", "#5f4a4f", "#8f6f8f", "#3f3342", "#eae2ff"),
)
# sky above, sky below, three buildings, road, light
STREETS = (
    ("#8fd0f0", "#dff3f7", "#e9b48c", "#c9d6dc", "#d98f7a", "#6f7480", "#ffffff"),
    ("#a8d8ea", "#f4f1e0", "#b9c4a8", "#f0dcb4", "#a3b8c9", "#757680", "#ffffff"),
    ("#ffb07c", "#ffe3b3", "#c9816a", "#e6a97a", "#9a6f86", "#6d6574", "#ffeedd"),
    ("#c7d0da", "#e8ebee", "#a9a3ad", "#c9b9a9", "#8fa0ad", "#676b76", "#f6f8ff"),
    ("#f4b8c8", "#fde9dc", "#d89aa8", "#f0cba8", "#a594c0", "#716b7c", "#fff4f2"),
    ("#2c3566", "#6a5f94", "#4a4f7c", "#5a5482", "#3f4870", "#454659", "#dcdcff"),
)
# sky above, sky below, far hill, near hill, grass, path, light
PARKS = (
    ("#7fc8f0", "#def3f7", "#9fd0a8", "#7fbf7f", "#8fcb6b", "#ecd9ae", "#ffffff"),
    ("#9ad6e8", "#fdf3d8", "#b4cf8f", "#93bd68", "#a9ce62", "#f0dfb8", "#fffff4"),
    ("#ff9f80", "#ffe2a8", "#b98f8f", "#8f9a6a", "#a3ab5c", "#e8c493", "#ffeedc"),
    ("#b8c9d9", "#eaf0f2", "#9ab5ae", "#7fa58f", "#84b078", "#d9cfb8", "#f6faff"),
    ("#8fb8f0", "#f7dff0", "#c9a8c4", "#d98f6a", "#c9b458", "#e8d3b0", "#fff8f0"),
    ("#28356b", "#5f6fa8", "#3f5578", "#375a63", "#3f7059", "#8f8a8c", "#dcdfff"),
)


def _fade(pen: Pen, top: str, bottom: str, y0: int, y1: int) -> None:
    """Fill the whole width between two heights with a gradient from ``top`` to ``bottom``."""
    for y in range(y0, y1):
        pen.rect(0, y, SIZE, y + 1, mix(top, bottom, (y - y0) / max(1, y1 - y0 - 1)))


def _window(pen: Pen, x: float, y: float, w: float, h: float, frame: str, sky: str) -> None:
    """Draw a window with a sill: a view of sky and green, a reflection, and glazing bars."""
    pen.rect(x - 2.5, y - 2.5, x + w + 2.5, y + h + 2.5, frame, 1)
    for row in range(int(h)):
        pen.rect(x, y + row, x + w, y + row + 1, mix(sky, lighten(sky, 0.6), row / h))
    pen.blob(
        [
            (x + 0.2, y + h * 0.86),
            (x + w * 0.3, y + h * 0.72),
            (x + w * 0.6, y + h * 0.82),
            (x + w - 0.2, y + h * 0.7),
            (x + w - 0.2, y + h - 0.2),
            (x + 0.2, y + h - 0.2),
        ],
        mix(sky, "#6fae7a", 0.45),
    )
    pen.poly(
        [(x + w * 0.12, y + h), (x + w * 0.42, y), (x + w * 0.58, y), (x + w * 0.28, y + h)],
        lighten(sky, 0.5),
    )
    pen.rect(x + w / 2 - 0.7, y, x + w / 2 + 0.7, y + h, frame)
    pen.rect(x, y + h / 2 - 0.7, x + w, y + h / 2 + 0.7, frame)
    pen.rect(x - 4, y + h + 2.5, x + w + 4, y + h + 5, darken(frame, 0.12), 0.6)


def _kitchen(p: Pen, mood: int) -> None:
    """Paint a tiled wall with a window, a row of cupboards, the floor, and a worktop in front."""
    wall, joint, cupboard, top, floor, _ = KITCHENS[mood]
    # The wall, with tiles whose rows are shifted against each other
    p.rect(0, 0, 128, 70, wall)
    for row in range(9):
        p.rect(0, 7.5 * row, 128, 7.5 * row + 0.8, joint)
        for column in range(-1, 10):
            x = column * 15 + (7.5 if row % 2 else 0)
            p.rect(x, 7.5 * row, x + 0.8, 7.5 * row + 7.5, joint)
    p.rect(0, 0, 128, 9, mix(wall, cupboard, 0.5))
    p.rect(0, 9, 128, 10.4, darken(wall, 0.25))
    # The window: night in mood 5, and evening in mood 2
    sky = "#2a3566" if mood == 5 else ("#ffd0a0" if mood == 2 else "#bfe4f4")
    x = (14, 70, 44, 78, 24, 60)[mood]
    _window(p, x, 18, 34, 30, lighten(wall, 0.7 if mood < 5 else 0.35), sky)
    # The back worktop with its cupboards
    p.rect(0, 62, 128, 68.5, top)
    p.rect(0, 62, 128, 63.4, lighten(top, 0.3))
    p.rect(0, 68.5, 128, 71, darken(top, 0.3))
    p.rect(0, 71, 128, 96, cupboard)
    p.rect(0, 71, 128, 73, darken(cupboard, 0.2))
    for column in range(4):
        x = 2 + column * 32
        p.rect(x, 75, x + 28, 91.5, lighten(cupboard, 0.13), 1.4)
        p.rect(x + 2, 77, x + 26, 89.5, cupboard, 1)
        p.rect(x + 10, 78.4, x + 18, 79.8, lighten(cupboard, 0.55), 0.6)
    p.rect(0, 92.5, 128, 96, darken(cupboard, 0.45))
    # The floor, whose joints spread towards the viewer
    _fade(p, darken(floor, 0.12), floor, 96, 112)
    for column in range(-3, 12):
        p.line([(64 + (column - 4) * 16, 96), (64 + (column - 4) * 24, 114)], darken(floor, 0.2), 0.7)
    for y in (100, 105.4):
        p.line([(0, y), (128, y)], darken(floor, 0.2), 0.7)
    # The front worktop
    p.rect(0, 105.5, 128, 108, darken(floor, 0.28))
    p.rect(0, 107.5, 128, 128, lighten(top, 0.2))
    p.rect(0, 107.5, 128, 108.6, lighten(top, 0.5))
    for i, y in enumerate((112.4, 117, 122.4)):
        p.line([(0, y), (40 + 30 * i, y + 0.8), (128, y - 0.4)], mix(top, lighten(top, 0.2), 0.5), 0.7)


def _office(p: Pen, mood: int) -> None:
    """Paint a wall with a window and a pinboard, the floor, and a large desk in front."""
    wall, floor, desk, accent, sky, _ = OFFICES[mood]
    p.rect(0, 0, 128, 74, wall)
    p.rect(0, 40, 128, 74, darken(wall, 0.05))
    p.rect(0, 40, 128, 41, darken(wall, 0.13))
    p.rect(0, 70, 128, 74, lighten(wall, 0.5 if mood < 5 else 0.15))
    # The window and the light that falls through it, and the pinboard with its notes; at night the board is narrower
    frame = lighten(wall, 0.75 if mood < 5 else 0.3)
    wx, bx = ((10, 74), (76, 12), (46, 4), (8, 70), (74, 8), (40, 92))[mood]
    _window(p, wx, 10, 38, 34, frame, sky)
    if mood != 5:
        p.poly([(wx + 4, 74), (wx + 40, 74), (wx + 58, 88), (wx + 14, 88)], lighten(floor, 0.2))
    wide = 30 if mood == 5 else 36
    p.rect(bx, 12, bx + wide, 38, darken(desk, 0.25), 1)
    p.rect(bx + 1.6, 13.6, bx + wide - 1.6, 36.4, "#d3ab79" if mood != 5 else "#8a6f5a")
    for dx, dy, note in (
        (4, 4, "#ffe07a"),
        (14, 3, accent),
        (24, 5, "#ffffff"),
        (6, 14, "#f2a0a0"),
        (18, 13, "#a8dcc0"),
    ):
        if dx + 8 < wide:
            p.rect(bx + dx, 12 + dy, bx + dx + 7.4, 12 + dy + 7.4, mix(note, wall, 0.25))
            p.dot(bx + dx + 3.7, 12 + dy + 1, 0.8, darken(accent, 0.3))
    # The floor
    _fade(p, darken(floor, 0.18), floor, 74, 128)
    for y in (80, 90, 104):
        p.line([(0, y), (128, y)], darken(floor, 0.16), 0.8)
    p.rect(0, 74, 128, 75.2, darken(floor, 0.4))
    # The desk, with its shadow first
    p.poly([(0, 120), (104, 120), (110, 128), (0, 128)], darken(floor, 0.35))
    p.poly([(0, 81), (90, 81), (101, 121), (0, 121)], desk)
    p.poly([(0, 81), (90, 81), (90.4, 82.4), (0, 82.4)], lighten(desk, 0.35))
    p.poly([(4, 81), (34, 81), (18, 121), (0, 121), (0, 98)], lighten(desk, 0.12))
    p.poly([(0, 121), (101, 121), (101, 125), (0, 125)], darken(desk, 0.3))
    p.rect(0, 125, 96, 128, darken(desk, 0.5))


def _living_room(p: Pen, mood: int) -> None:
    """Paint a papered wall with a window, prints or a lamp, the floor with a rug, a cabinet and a low table."""
    wall, pattern, floor, rug, cabinet, _ = LIVING_ROOMS[mood]
    p.rect(0, 0, 128, 80, wall)
    # Wallpaper, striped or with lozenges
    if mood % 2:
        for x in range(0, 128, 12):
            p.rect(x, 0, x + 5, 74, pattern)
    else:
        for row in range(7):
            for column in range(12):
                x, y = column * 12 + (6 if row % 2 else 0), 5 + row * 11
                p.poly([(x, y - 2.6), (x + 2, y), (x, y + 2.6), (x - 2, y)], pattern)
    # On the wall: a lamp, two prints, or a window with curtains
    if mood % 3 == 2:
        for ring in range(8):
            t = ring / 8
            p.dot(104, 16, 34 * (1 - t), mix(wall, "#ffedb8", 0.12 + 0.5 * t))
        p.poly([(97, 8), (111, 8), (116, 20), (92, 20)], "#fff0c2")
        p.rect(103.2, 0, 104.8, 8, darken(wall, 0.5))
    elif mood % 3 == 0:
        _picture(p, 14, 12, 24, 18, darken(cabinet, 0.1), mood)
        _picture(p, 82, 10, 32, 24, lighten(cabinet, 0.2), mood + 1)
    else:
        _window(p, 74, 10, 38, 34, lighten(wall, 0.7), "#bfe0f2")
        for x, lean in ((66, 4), (115, -4)):
            p.poly([(x, 6), (x + 8, 6), (x + 8 + lean, 54), (x + lean, 54)], mix(rug, wall, 0.3))
            p.line([(x + 4, 7), (x + 4 + lean, 53)], darken(mix(rug, wall, 0.3), 0.15), 0.8)
        p.rect(62, 4.6, 126, 6.6, darken(cabinet, 0.1), 1)
    p.rect(0, 74, 128, 80, lighten(wall, 0.55 if mood < 5 else 0.15))
    p.rect(0, 79, 128, 80, darken(wall, 0.3))
    # The floorboards and the rug
    _fade(p, darken(floor, 0.14), lighten(floor, 0.06), 80, 128)
    for i, y in enumerate((86, 93, 102, 114)):
        p.line([(0, y), (128, y)], darken(floor, 0.18), 0.8)
        for x in range(10 + 17 * i % 40, 128, 46):
            p.line([(x, y), (x, y - (6, 7, 9, 12)[i])], darken(floor, 0.18), 0.7)
    p.oval(2, 93, 126, 133, darken(floor, 0.25))
    p.oval(2, 92, 126, 132, rug)
    p.oval(8, 94.6, 120, 129, lighten(rug, 0.28))
    p.oval(11, 96, 117, 127.4, rug)
    # The cabinet
    p.rect(2, 82, 60, 87, darken(floor, 0.35), 2)
    p.rect(3, 66, 59, 84, cabinet, 1)
    for x in (5, 32):
        p.rect(x, 69.4, x + 25, 81.6, lighten(cabinet, 0.14), 0.8)
        p.rect(x + 9, 71.4, x + 16, 72.8, lighten(cabinet, 0.5), 0.6)
    p.rect(1, 63, 61, 66.6, lighten(cabinet, 0.2), 0.8)
    # The low table
    p.oval(62, 121, 108, 128, darken(rug, 0.25))
    table = darken(cabinet, 0.05)
    p.poly([(79, 113), (91, 113), (96, 125), (74, 125)], darken(table, 0.35))
    p.oval(42, 104.5, 126, 118.5, darken(table, 0.2))
    p.oval(42, 102.5, 126, 116, lighten(table, 0.28))
    p.oval(48, 103.6, 120, 114.4, lighten(table, 0.34))


def _picture(p: Pen, x: float, y: float, w: float, h: float, frame: str, mood: int) -> None:
    """Draw an abstract print in a frame. Nothing in it may look like one of the objects."""
    inks = ("#e9a05f", "#6fa8a0", "#d87a6a", "#8f9fd0", "#c9c06a", "#a87fb0")
    p.rect(x, y, x + w, y + h, frame, 0.8)
    p.rect(x + 2, y + 2, x + w - 2, y + h - 2, "#f6f0e2")
    ink, other = inks[mood % 6], inks[(mood + 2) % 6]
    p.rect(x + 2, y + h * 0.56, x + w - 2, y + h - 2, mix(ink, "#f6f0e2", 0.2))
    p.pie(x + w * 0.25, y + h * 0.3, x + w * 0.75, y + h * 0.3 + w * 0.5, 180, 360, other)


def _street(p: Pen, mood: int) -> None:
    """Paint a row of houses with shops under the sky, a pavement, the road, and a pavement in front."""
    above, below, one, two, three, road, _ = STREETS[mood]
    # Seeded by the mood, so that a backdrop is the same in every scene and can be cached
    dice = random.Random(mood * 7 + 1)
    _fade(p, above, below, 0, 75)
    for cx, cy in ((20 + mood * 14, 10), (96 - mood * 9, 18)):
        if mood not in (3, 5):  # overcast, and night
            _cloud(p, cx, cy, lighten(below, 0.6))
    # Houses in the haze
    far = mix(below, three, 0.35)
    for column in range(8):
        p.rect(18 * column - 6, 24 + dice.randrange(18), 18 * column + 10, 76, far)
    # The row of houses, from left to right until the picture is full: wall, cornice, windows, shop window and awning
    x, palette = -6.0 + mood, (one, two, three)
    glass = "#ffd98a" if mood == 5 else "#7fa6bd"
    index = mood
    while x < 128:
        wide, high = dice.choice((26, 30, 36)), dice.choice((30, 38, 46, 22))
        wall, top = palette[index % 3], 76 - high
        p.rect(x, top, x + wide, 76, wall)
        p.rect(x + wide - 4, top, x + wide, 76, darken(wall, 0.1))
        p.rect(x - 1, top - 2, x + wide + 1, top + 1.4, darken(wall, 0.28), 0.5)
        for row in range(int((high - 20) // 9)):
            for column in range(int(wide // 8)):  # at night, about half of the windows are lit
                wx, wy = x + 3 + column * 7.6, top + 5 + row * 9
                lit = mix(wall, glass, 0.75 if mood != 5 or dice.random() < 0.55 else 0.12)
                p.rect(wx, wy, wx + 4.4, wy + 5.6, lit, 0.3)
        shade = palette[(index + 1) % 3]
        p.rect(x + 3, 62, x + wide - 7, 76, mix(darken(wall, 0.35), glass, 0.3))
        for stripe in range(int((wide - 6) // 4)):
            sx = x + 2 + stripe * 4
            p.rect(sx, 58, sx + 4, 62.6, lighten(shade, 0.6) if stripe % 2 else darken(shade, 0.08), 0.8)
        x += wide
        index += 1
    # The far pavement, the road with its dashes, and the near pavement with its slabs
    pave = mix(road, "#f0e6d8", 0.55)
    p.rect(0, 76, 128, 85, pave)
    p.rect(0, 76, 128, 77, darken(pave, 0.25))
    p.rect(0, 85, 128, 87, darken(pave, 0.3))
    _fade(p, darken(road, 0.06), lighten(road, 0.06), 87, 109)
    for x in range(-4, 128, 26):
        p.poly([(x + 2, 96), (x + 16, 96), (x + 15, 98.2), (x, 98.2)], mix(road, "#ffffff", 0.6))
    p.rect(0, 109, 128, 111.4, lighten(pave, 0.3))
    p.rect(0, 111.4, 128, 128, mix(pave, "#d8c8b4", 0.25))
    for column in range(-2, 11):
        p.line([(64 + (column - 4) * 15, 111.4), (64 + (column - 4) * 19, 128)], darken(pave, 0.14), 0.7)
    p.line([(0, 118.6), (128, 118.6)], darken(pave, 0.14), 0.7)


def _cloud(p: Pen, x: float, y: float, colour: str) -> None:
    """Draw a small cloud around a point."""
    p.oval(x - 13, y, x + 13, y + 7, colour)
    p.dot(x - 3, y + 1, 5.4, colour)
    p.dot(x + 5, y + 2, 4, colour)


def _park(p: Pen, mood: int) -> None:
    """Paint hills under the sky, a lawn with a path, and a picnic blanket, which is the "top" of this place."""
    above, below, far, near, grass, path, _ = PARKS[mood]
    # Seeded by the mood, so that a backdrop is the same in every scene and can be cached
    dice = random.Random(mood * 5 + 2)
    _fade(p, above, below, 0, 66)
    # The sun, or the moon with stars; mood 3 is overcast
    sun = "#fff6d0" if mood != 5 else "#eef0ff"
    sx, sy = ((104, 16), (24, 18), (84, 44), (60, 14), (22, 20), (100, 18))[mood]
    if mood != 3:
        for ring in range(6):
            p.dot(sx, sy, 16 - ring * 1.7, mix(mix(above, below, sy / 66), sun, 0.1 + 0.11 * ring))
    if mood == 5:
        for _ in range(24):
            p.dot(dice.uniform(0, 128), dice.uniform(0, 44), dice.choice((0.4, 0.6)), "#dfe4ff")
    else:
        for cx, cy in ((22 + 17 * mood % 50, 12), (82 - 9 * mood % 40, 24)):
            _cloud(p, cx, cy, lighten(below, 0.55))
    # Far hills, trees in front of them, near hills, and the lawn
    ridge = [(float(x), 50 - 7 * math.sin(x / 21 + mood)) for x in range(-4, 136, 4)]
    p.poly([*ridge, (132, 90), (-4, 90)], far)
    for _ in range(9):
        x = dice.uniform(0, 128)
        y = 60 - 5 * math.sin(x / 27 + mood * 2)
        r = dice.uniform(4.5, 7.5)
        p.rect(x - 0.8, y, x + 0.8, y + 8, darken(near, 0.45))
        p.dot(x, y - 2, r, darken(near, 0.14))
        p.dot(x - r * 0.25, y - 3, r * 0.66, darken(near, 0.04))
    ridge = [(float(x), 63 - 4.5 * math.sin(x / 27 + mood * 2)) for x in range(-4, 136, 4)]
    p.poly([*ridge, (132, 90), (-4, 90)], near)
    ridge = [(float(x), 71 - 2 * math.sin(x / 33 + mood)) for x in range(-4, 136, 4)]
    p.poly([*ridge, (132, 130), (-4, 130)], grass)
    for y in range(84, 128, 11):
        p.blob(
            [
                (-8, y),
                (40, y - 3),
                (90, y + 1),
                (136, y - 3),
                (136, y + 4),
                (80, y + 6),
                (30, y + 2.6),
                (-8, y + 5),
            ],
            mix(grass, lighten(grass, 0.25), 0.45),
        )
    p.blob(
        [
            (86, 69),
            (92, 69),
            (88, 78),
            (96, 90),
            (118, 104),
            (128, 118),
            (128, 136),
            (84, 136),
            (92, 118),
            (80, 100),
            (76, 86),
            (82, 76),
        ],
        path,
    )
    for _ in range(34):
        x, y = dice.uniform(2, 126), dice.uniform(76, 126)
        if dice.random() < 0.6:
            p.line([(x - 1.2, y - 2.4), (x, y), (x + 1.2, y - 2.4)], darken(grass, 0.2), 0.7)
        else:
            p.dot(x, y, 0.9, dice.choice(("#ffffff", "#ffe07a", "#f6a8b8")) if mood != 5 else "#a8b8c8")
    # The picnic blanket, striped both ways
    cloth = ("#e86a5e", "#5f8fd0", "#d86a5a", "#6a9a8f", "#8f6ab0", "#5a5f8f")[mood]
    p.poly([(12, 104.6), (72, 104.6), (80, 124.6), (2, 124.6)], darken(grass, 0.3))
    p.poly([(12, 104), (72, 104), (80, 123.6), (2, 123.6)], lighten(cloth, 0.72))
    for i in range(4):
        x = 12 + 15.0 * i + 4
        low = 2 + 19.5 * i + 5
        p.poly([(x, 104), (x + 5, 104), (low + 6.6, 123.6), (low, 123.6)], lighten(cloth, 0.42))
    for y in (108.4, 116.4):
        t = (y - 104) / 19.6
        p.poly(
            [(12 - 10 * t, y), (72 + 8 * t, y), (73 + 8 * t, y + 3), (11 - 10 * t, y + 3)],
            lighten(cloth, 0.3),
        )


PAINTERS = {
    "kitchen": (_kitchen, KITCHENS, False),
    "office": (_office, OFFICES, False),
    "living room": (_living_room, LIVING_ROOMS, False),
    "street": (_street, STREETS, True),
    "park": (_park, PARKS, True),
}


@lru_cache(maxsize=128)
def paint(context: str, mood: int, flip: bool) -> Backdrop:
    """The backdrop of a context.

    Args:
        context: one of ``PAINTERS``.
        mood: which of the ``MOODS`` palettes it has, from 0.
        flip: whether it is mirrored, with its zones.
    """
    painter, palettes, outdoors = PAINTERS[context]
    # Four times too large, and reduced below, which smooths the edges
    pen = Pen(SIZE, SIZE, 4, fill="#ffffff")
    painter(pen, mood)
    image = pen.image.reduce(4).convert("RGB")
    zones = ZONES[context]
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        zones = tuple(Zone(z.kind, SIZE - z.x1, SIZE - z.x0, z.y0, z.y1) for z in zones)
    # The light stands last in every palette. Haze takes the colour of what is behind: of the lower sky, or of the wall
    palette = palettes[mood]
    return Backdrop(image, zones, outdoors, palette[-1], palette[1] if outdoors else palette[0])
