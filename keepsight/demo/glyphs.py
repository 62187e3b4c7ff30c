"""The 28 objects as cached sprites: drawing, colourways, outline and shadow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageFilter

from keepsight.demo import drawings_indoor as indoor
from keepsight.demo import drawings_outdoor as outdoor
from keepsight.demo.pen import Pen

Way = tuple[str, ...]
"""A colourway: the colours of an object, in the order in which its drawing takes them."""
SUPERSAMPLE = 4
"""Pixels of a drawing for each pixel of the scene."""
INK = (43, 32, 58)
"""The colour of outlines."""
CAST = 4
"""By how many pixels a shadow is larger than its sprite on every side, so that the blur has room."""
OUTLINE = 0.9
"""The width of outlines, in pixels of the finished picture."""


@dataclass(frozen=True)
class Glyph:
    """One object: how it is drawn, and how it may stand.

    Args:
        width, height: the size of the drawing in pixels of the scene, before ``zoom``.
        draw: draws the object with a pen, in a colourway.
        ways: the colourways, at least three. They must not change the object's shape.
        stance: "floor" (big things and animals), "top" (small things that rest on a surface) or "air" (things that hang or
            fly).
        tilt: the largest random turn in degrees; default 0.
        lean: a turn in degrees that the object always has; default 0.
        flips: whether the object may be mirrored; default True. The writing on a stop sign, for one, may not.
        zoom: a factor on the size of the drawing; default 1.
        trail: draws what lies behind the object and has no outline, or None.
    """

    width: float
    height: float
    draw: Callable[[Pen, Way], None]
    ways: tuple[Way, ...]
    stance: str
    tilt: float = 0.0
    lean: float = 0.0
    flips: bool = True
    zoom: float = 1.0
    trail: Callable[[Pen], None] | None = None


@dataclass(frozen=True)
class Sprite:
    """The finished drawing of one object.

    Args:
        image: the object on a transparent ground, RGBA.
        alpha: how far each pixel is covered, from 0 to 255.
        cast: the blurred shadow that the object casts, larger than the image by ``CAST`` pixels on every side.
        width, height: the size of ``image`` in pixels.
        columns: the share of the object's area left of each column, ``width`` + 1 numbers from 0 to 1.
        rows: the share of the object's area above each row, ``height`` + 1 numbers from 0 to 1.
    """

    image: Image.Image
    alpha: Image.Image
    cast: Image.Image
    width: int
    height: int
    columns: tuple[float, ...]
    rows: tuple[float, ...]


# Keys are the COCO category names. Numbers without a keyword are width, height, and, after the stance, tilt, lean and flips
BANK: dict[str, Glyph] = {
    "oven": Glyph(
        40,
        42,
        indoor.draw_oven,
        (
            ("#e8e6ea", "#2d2a38", "#ffb347"),
            ("#9aa3b0", "#262432", "#ff9f45"),
            ("#d8523f", "#33262c", "#ffc45c"),
            ("#3f4656", "#1d1b27", "#ffb347"),
        ),
        "floor",
    ),
    "refrigerator": Glyph(
        30,
        58,
        indoor.draw_refrigerator,
        (
            ("#f1f3f5", "#8d97a5", "#fff0a8"),
            ("#b4bfc9", "#5d6878", "#ffffff"),
            ("#8fd0c0", "#f4f1e6", "#fff0a8"),
            ("#e46a5e", "#f6e9dc", "#ffffff"),
        ),
        "floor",
    ),
    "bowl": Glyph(
        38,
        23,
        indoor.draw_bowl,
        (
            ("#4a90c9", "#f7f2e4", "#2f5f8c"),
            ("#e8743b", "#fff2d8", "#a84a22"),
            ("#f4efe2", "#3f8f83", "#c9bfa6"),
            ("#7d5ba6", "#f4d35e", "#54397a"),
        ),
        "top",
        3,
    ),
    "cup": Glyph(
        29,
        27,
        indoor.draw_cup,
        (
            ("#e0475b", "#ffffff", "#5a3425"),
            ("#f6f1e7", "#e0475b", "#5a3425"),
            ("#3fa796", "#fdf1c7", "#5a3425"),
            ("#f0b73c", "#7a3d2b", "#4b2a20"),
        ),
        "top",
        3,
    ),
    "bottle": Glyph(
        16,
        43,
        indoor.draw_bottle,
        (
            ("#3d8b5f", "#f5ecd2", "#7b2d3b"),
            ("#9c5a2a", "#f7e8c4", "#d8352f"),
            ("#6bb7d9", "#ffffff", "#2463a8"),
            ("#7a3350", "#f2e4cf", "#c79a3b"),
        ),
        "top",
        3,
    ),
    "banana": Glyph(
        34,
        29,
        indoor.draw_banana,
        (
            ("#ffd93b", "#eeb526", "#5b3a1e"),
            ("#f7e04a", "#cfc63a", "#4c5a22"),
            ("#ffcf33", "#e39b22", "#3d2a1a"),
        ),
        "top",
        8,
    ),
    "laptop": Glyph(
        50,
        36.4,
        indoor.draw_laptop,
        (
            ("#c6cbd4", "#3f7fd0", "#ffd166"),
            ("#6d7385", "#2fb5a5", "#fff3c4"),
            ("#e7d9c8", "#6f5bd0", "#ff9eb1"),
            ("#4a4658", "#f08a5d", "#ffe9a0"),
        ),
        "top",
        2,
    ),
    "keyboard": Glyph(
        54,
        23,
        indoor.draw_keyboard,
        (
            ("#3a3848", "#e9e7f0", "#ff7a59"),
            ("#dcdfe6", "#ffffff", "#5aa9e6"),
            ("#565f78", "#cfd8ea", "#f4c542"),
            ("#c9b79c", "#fff8ea", "#c0564b"),
        ),
        "top",
        4,
    ),
    "mouse": Glyph(
        24,
        38,
        indoor.draw_mouse,
        (
            ("#f2f2f5", "#5b6070", "#70758a"),
            ("#454356", "#59d0c2", "#2c2a38"),
            ("#d9575f", "#3a2730", "#5b4048"),
            ("#8fb6dc", "#2f4964", "#40587a"),
        ),
        "top",
        12,
        10,
        zoom=0.88,
    ),
    "book": Glyph(
        44,
        35.5,
        indoor.draw_book,
        (
            ("#b5402f", "#fff7e6", "#2f6fb0"),
            ("#2f6fb0", "#fffaf0", "#e2434b"),
            ("#3c8a5b", "#fdf3dc", "#f0b73c"),
            ("#6b4596", "#fff7e6", "#f08a5d"),
        ),
        "top",
        5,
        zoom=0.9,
    ),
    "chair": Glyph(
        34,
        50,
        indoor.draw_chair,
        (("#a8683a", "#d7504a"), ("#c98f55", "#3f8f83"), ("#6d4630", "#e8c46a"), ("#e9e2d6", "#4f74b8")),
        "floor",
    ),
    "clock": Glyph(
        36,
        38,
        indoor.draw_clock,
        (
            ("#d8433f", "#fffaf0", "#2d2838"),
            ("#2f7f95", "#fffaf0", "#2d2838"),
            ("#e8ae32", "#fff6e0", "#3d2f28"),
            ("#4b4860", "#ffffff", "#2d2838"),
        ),
        "air",
        4,
        0,
        False,
    ),
    "couch": Glyph(
        61,
        36,
        indoor.draw_couch,
        (
            ("#3f8c8c", "#f2b84b"),
            ("#c65a4e", "#f6e3c5"),
            ("#5b6fb3", "#ffc9b5"),
            ("#c99b54", "#4f7f6d"),
            ("#7c5a8c", "#f2d06b"),
        ),
        "floor",
    ),
    "tv": Glyph(
        50,
        46,
        indoor.draw_tv,
        (
            ("#a4633a", "#6fc3df", "#3f9f6b"),
            ("#d9694a", "#8fd3e8", "#f2d06b"),
            ("#3d8f88", "#f7c9a5", "#d86a5c"),
            ("#5a5a74", "#86b9ee", "#7a5bb0"),
        ),
        "top",
        0,
    ),
    "remote": Glyph(
        16,
        46,
        indoor.draw_remote,
        (
            ("#3c3a4a", "#d9d9e3", "#ff4f4a"),
            ("#55607a", "#eef1f7", "#ff6b57"),
            ("#d9d6d0", "#5a5868", "#e2434b"),
        ),
        "top",
        10,
        38,
    ),
    "potted plant": Glyph(
        32,
        47,
        indoor.draw_plant,
        (
            ("#3f9b57", "#cf6b43", "#e2835a"),
            ("#5aa845", "#f2ede2", "#ffffff"),
            ("#2f8a6c", "#3f6fa8", "#5f8fc6"),
            ("#7fb23f", "#e0ab3c", "#f0c35c"),
        ),
        "floor",
    ),
    "cat": Glyph(
        36,
        42,
        indoor.draw_cat,
        (
            ("#e8923f", "#fff1dc", "#b9601f"),
            ("#6d6a78", "#eceaf0", "#45424f"),
            ("#37333f", "#8a8594", "#211e28"),
            ("#e9dcc8", "#ffffff", "#a58a6c"),
        ),
        "floor",
    ),
    "car": Glyph(
        59.6,
        31.6,
        outdoor.draw_car,
        (
            ("#e0453e", "#bfe6f2"),
            ("#2f7fd0", "#d5eef6"),
            ("#f2b632", "#bfe0ea"),
            ("#f1eee8", "#86b5cc"),
            ("#3f9a6a", "#cdeaf0"),
        ),
        "floor",
    ),
    "traffic light": Glyph(
        20,
        60,
        outdoor.draw_traffic_light,
        (("#2c2938", "#f4c22f"), ("#33313d", "#e9e9ee"), ("#24323a", "#57606e")),
        "floor",
        0,
        0,
        False,
    ),
    "bicycle": Glyph(
        55.4,
        35.4,
        outdoor.draw_bicycle,
        (("#e0453e", "#2d2a38"), ("#1f9aa8", "#2d2a38"), ("#f29a2e", "#33303c"), ("#6b52b5", "#2a2733")),
        "floor",
    ),
    "person": Glyph(
        24,
        58,
        outdoor.draw_person,
        (
            ("#f2c29c", "#5a3825", "#e2553f", "#3c4f7d"),
            ("#8a5a3c", "#241a1c", "#f2c23c", "#3f7a6b"),
            ("#c98d62", "#2e2224", "#3f9bd0", "#4c4458"),
            ("#f6d3b3", "#d9a13d", "#7d4fa3", "#6d5a48"),
            ("#6a4530", "#1e1718", "#efe9df", "#a8493f"),
        ),
        "floor",
    ),
    "stop sign": Glyph(
        33,
        60,
        outdoor.draw_stop_sign,
        (("#d8262f", "#b5b9c4"), ("#c31f2c", "#8b8f9c"), ("#e2383a", "#9a7a5a")),
        "floor",
        3,
        0,
        False,
    ),
    "bench": Glyph(
        57,
        35,
        outdoor.draw_bench,
        (("#c47d42", "#3a3d4a"), ("#d19a5b", "#4b5a52"), ("#8a5236", "#2f3440"), ("#5f9a6a", "#3a3d4a")),
        "floor",
    ),
    "dog": Glyph(
        48.4,
        39,
        outdoor.draw_dog,
        (
            ("#c98a4b", "#7a4a28", "#e2434b"),
            ("#f3ead9", "#8a5a3a", "#2f7fd0"),
            ("#4d4654", "#2a2630", "#f2b632"),
            ("#a86538", "#6a3a20", "#3fa796"),
        ),
        "floor",
    ),
    "frisbee": Glyph(
        48,
        22,
        outdoor.draw_frisbee,
        (("#ef4f4f", "#ffe08a"), ("#2f8fe0", "#ffffff"), ("#ff9f1c", "#fff3c4"), ("#8f4fd0", "#ffd6f2")),
        "air",
        10,
        10,
        trail=outdoor.draw_flight,
    ),
    "bird": Glyph(
        44,
        27,
        outdoor.draw_bird,
        (
            ("#3f86d6", "#27589c", "#f6efe2"),
            ("#d9453f", "#97282c", "#ffe3c4"),
            ("#f2c230", "#c98a1e", "#fff6d8"),
            ("#5d5a70", "#3a3748", "#e6e3ea"),
        ),
        "air",
        8,
    ),
    "kite": Glyph(
        36,
        52,
        outdoor.draw_kite,
        (
            ("#e8483f", "#ffc93c", "#2f86d6", "#ff8fb1"),
            ("#7b4fc4", "#49c5b6", "#ff9f43", "#ffe066"),
            ("#2f9e6e", "#ffe066", "#ef6f6c", "#5aa9e6"),
        ),
        "air",
        14,
        -18,
    ),
    "umbrella": Glyph(
        44,
        44,
        outdoor.draw_umbrella,
        (
            ("#e0413f", "#fff3e0", "#6b4630"),
            ("#2f6fc4", "#8fd0f0", "#3a3444"),
            ("#f2b632", "#f08a5d", "#6b4630"),
            ("#8d4fb0", "#f2a7c3", "#3a3444"),
        ),
        "air",
        10,
        8,
    ),
}


@lru_cache(maxsize=512)
def _ink(name: str, way: int, flip: bool) -> Image.Image:
    """The object at ``SUPERSAMPLE`` times its size, with its outline. It is drawn once, and then only turned and resized."""
    glyph = BANK[name]
    pen = Pen(glyph.width, glyph.height, SUPERSAMPLE, pad=4)
    glyph.draw(pen, glyph.ways[way])
    art = pen.image
    # Widening the drawing's coverage by the width of the outline, and drawing over it, leaves the outline around the shape
    reach = 2 * round(OUTLINE * SUPERSAMPLE) + 1
    rim = art.getchannel("A").filter(ImageFilter.MaxFilter(reach)).filter(ImageFilter.GaussianBlur(0.8))
    whole = Image.new("RGBA", art.size, (*INK, 0))
    whole.putalpha(rim)
    whole.alpha_composite(art)
    if glyph.trail:
        behind = Pen(glyph.width, glyph.height, SUPERSAMPLE, pad=4)
        glyph.trail(behind)
        behind.image.alpha_composite(whole)
        whole = behind.image
    return whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else whole


@lru_cache(maxsize=16_000)
def cut(name: str, way: int, percent: int, flip: bool, turn: int) -> Sprite:
    """The sprite of one object.

    Args:
        name: the name of the object.
        way: the index of its colourway.
        percent: its size in per cent of its own.
        flip: whether it is mirrored.
        turn: its random turn in degrees, counter-clockwise, besides its ``lean``.
    """
    whole = _ink(name, way, flip)
    lean = BANK[name].lean
    angle = turn + (-lean if flip else lean)  # a mirrored object leans the other way
    if angle:
        whole = whole.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    box = whole.getbbox() or (0, 0, *whole.size)
    scale = BANK[name].zoom * percent / 100 / SUPERSAMPLE
    wide, high = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    small = whole.resize((wide, high), Image.Resampling.HAMMING, box)
    alpha = small.getchannel("A")
    cast = Image.new("L", (wide + 2 * CAST, high + 2 * CAST), 0)
    cast.paste(alpha, (CAST, CAST))
    cast = cast.filter(ImageFilter.GaussianBlur(1.6))
    return Sprite(small, alpha, cast, wide, high, _cumulate(alpha, wide, 1), _cumulate(alpha, 1, high))


def _cumulate(alpha: Image.Image, wide: int, high: int) -> tuple[float, ...]:
    """The share of the covered area before each column or row, from 0 to 1. One of ``wide`` and ``high`` is 1."""
    # Resizing by BOX takes the mean of each column or row
    means = alpha.resize((wide, high), Image.Resampling.BOX).tobytes()
    whole = sum(means) or 1  # means are whole numbers, so that a very thin object may have none above 0
    total, shares = 0, [0.0]
    for mean in means:
        total += mean
        shares.append(total / whole)
    return tuple(shares)
