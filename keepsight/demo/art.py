"""Pictures of the demo world: 28 COCO objects drawn into five places, 128 x 128 RGB."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from keepsight.demo.backdrops import MOODS, PAINTERS, SIZE, Backdrop, paint
from keepsight.demo.covers import MARGIN, raise_cover
from keepsight.demo.glyphs import BANK, CAST
from keepsight.demo.layout import Spot, arrange
from keepsight.errors import KeepsightError

__all__ = [
    "CONTEXTS",
    "GLYPHS",
    "SIZE",
    "VISIBILITIES",
    "Item",
    "Placed",
    "UnknownContext",
    "UnknownObject",
    "UnknownVisibility",
    "render",
]

CONTEXTS: tuple[str, ...] = tuple(PAINTERS)
GLYPHS: tuple[str, ...] = tuple(BANK)
VISIBILITIES: tuple[str, ...] = ("clear", "part", "heavy")
SHADE = (43, 32, 58)
LYING = frozenset({"banana", "book", "frisbee", "keyboard", "mouse", "remote", "umbrella"})


class UnknownObject(KeepsightError, ValueError):
    """An object name that the demo world cannot draw."""


class UnknownContext(KeepsightError, ValueError):
    """A place that the demo world does not have."""


class UnknownVisibility(KeepsightError, ValueError):
    """A visibility other than clear, part or heavy."""


@dataclass(frozen=True)
class Item:
    """An object to draw. visibility: "clear" (all of it), "part" (30-50 % hidden or hazy) or
    "heavy" (60-85 % hidden or deep in haze)."""

    name: str
    visibility: str


@dataclass(frozen=True)
class Placed:
    """An object as drawn; box is x, y, width, height in pixels of what shows inside the frame."""

    name: str
    visibility: str
    box: tuple[float, float, float, float]


def render(context: str, items: Sequence[Item], rng: random.Random) -> tuple[Image.Image, list[Placed]]:
    """Draw a scene: a backdrop of the context with the items on its surfaces.

    Any object may appear in any context; up to seven find room of their own. The picture depends on the
    arguments and the state of rng alone. Returns the picture and one Placed per item, in item order.

    Raises UnknownContext, UnknownObject or UnknownVisibility for names outside CONTEXTS, GLYPHS and
    VISIBILITIES.
    """
    if context not in PAINTERS:
        raise UnknownContext(f"no place called {context!r}; use one of: {', '.join(CONTEXTS)}")
    for item in items:
        if item.name not in BANK:
            raise UnknownObject(f"no drawing of {item.name!r}; use one of: {', '.join(GLYPHS)}")
        if item.visibility not in VISIBILITIES:
            raise UnknownVisibility(
                f"no visibility {item.visibility!r}; use one of: {', '.join(VISIBILITIES)}"
            )
    backdrop = paint(context, rng.randrange(MOODS), rng.random() < 0.5)
    spots = arrange([(i.name, i.visibility) for i in items], backdrop.zones, backdrop.outdoors, rng)
    picture = backdrop.image.copy()
    for spot in sorted(spots, key=lambda s: (s.home != "air", s.top + s.sprite.height)):
        _draw(picture, spot, backdrop)
    if backdrop.light != "#ffffff":
        picture = ImageChops.multiply(picture, _fill(backdrop.light))
    boxes = [find_visible_box(spot) for spot in spots]
    return picture, [Placed(i.name, i.visibility, b) for i, b in zip(items, boxes, strict=True)]


def find_visible_box(spot: Spot) -> tuple[float, float, float, float]:
    """Extent x, y, width, height of the object's pixels that neither its cover nor the frame hides."""
    mask = measure_visible(spot)
    box = mask.point(_SOLID).getbbox() or mask.getbbox() or (0, 0, spot.sprite.width, spot.sprite.height)
    left, top = max(0, spot.left + box[0]), max(0, spot.top + box[1])
    right, bottom = min(SIZE, spot.left + box[2]), min(SIZE, spot.top + box[3])
    return float(left), float(top), float(max(1, right - left)), float(max(1, bottom - top))


def measure_visible(spot: Spot) -> Image.Image:
    """Coverage (0-255) of the object's pixels that still show, over the sprite's own rectangle."""
    mask = spot.sprite.alpha
    outside = spot.left < 0 or spot.top < 0
    outside = outside or spot.left + spot.sprite.width > SIZE or spot.top + spot.sprite.height > SIZE
    if spot.cover is None and not outside:
        return mask
    mask = mask.copy()
    if spot.cover is not None:
        x, y, w, h = spot.cover
        cover = raise_cover(spot.veil.kind, w, h, spot.veil.way)
        mask.paste(0, (x - MARGIN - spot.left, y - MARGIN - spot.top), cover.getchannel("A"))
    if outside:
        frame = Image.new("L", mask.size, 0)
        frame.paste(255, (-spot.left, -spot.top, SIZE - spot.left, SIZE - spot.top))
        mask = ImageChops.multiply(mask, frame)
    return mask


_SOLID = [0] * 96 + [255] * 160


def _draw(picture: Image.Image, spot: Spot, backdrop: Backdrop) -> None:
    sprite, left, top = spot.sprite, spot.left, spot.top
    if spot.home == "air" and backdrop.outdoors:
        pass  # nothing near enough to throw a shadow on
    elif spot.home == "air" or spot.name in LYING:
        drop = 3 if spot.home == "air" else 2
        picture.paste(SHADE, (left - CAST + drop - 1, top - CAST + drop), sprite.cast.point(_CAST_SHARE))
    else:
        wide = 2 * round(sprite.width * 0.54)
        mask = _pool(wide)
        picture.paste(SHADE, (left + (sprite.width - mask.width) // 2, top + sprite.height - 6), mask)
    picture.paste(sprite.image, (left, top), sprite.image)
    if spot.veil.kind == "mist":
        share = spot.veil.share
        mist = sprite.cast.point([min(255, round(v * 1.25)) for v in range(256)])
        mist = mist.point([round(v * share) for v in range(256)])
        picture.paste(backdrop.haze, (left - CAST, top - CAST), mist)
    elif spot.cover is not None:
        x, y, w, h = spot.cover
        cover = raise_cover(spot.veil.kind, w, h, spot.veil.way)
        if spot.home != "air":
            mask = _pool(2 * round(w * 0.54))
            picture.paste(SHADE, (x + (w - mask.width) // 2, y + h - 6), mask)
        picture.paste(cover, (x - MARGIN, y - MARGIN), cover)


_CAST_SHARE = [round(v * 0.26) for v in range(256)]


@lru_cache(maxsize=256)
def _pool(wide: int) -> Image.Image:
    """A soft oval contact shadow."""
    mask = Image.new("L", ((wide + 8) * 2, 24), 0)
    ImageDraw.Draw(mask).ellipse((8, 7, 7 + 2 * wide, 17), 255)
    return mask.filter(ImageFilter.GaussianBlur(2.4)).point([round(v * 0.42) for v in range(256)]).reduce(2)


@lru_cache(maxsize=16)
def _fill(colour: str) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), colour)
