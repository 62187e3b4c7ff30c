"""Chooses where the objects of a scene stand and what hides them, without drawing anything."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from keepsight.demo.backdrops import SIZE, Zone
from keepsight.demo.covers import LEAD
from keepsight.demo.glyphs import BANK, Sprite, cut

Rect = tuple[float, float, float, float]  # left, top, right and bottom, in pixels of the picture
# In per cent of an object's own size. There are no sizes between, so that few sprites are made and each can be cached
SIZES = (70, 75, 81, 88, 94, 101, 108)
# Index of the smallest size that objects have where there is room
USUAL = 2
# By how many sizes everything is smaller in each attempt at a layout. The first and the last are tried twice, because places
# are random
STEPS = (0, 0, 1, 2, 3, 4, 5, 6, 6)
# Smallest and largest share of an object's area that its cover or the frame of the picture hides, and the density of mist in
# front of it
HIDDEN = {"part": (0.30, 0.50), "heavy": (0.60, 0.85)}
VEIL = {"part": (0.45, 0.56), "heavy": (0.78, 0.88)}
# Random places that are tried in each zone
TRIES = 9
# The share of the smaller object's rectangle that may overlap before everything is drawn smaller
CROWDED = 0.03
# In pixels: a gap of this width is as good as any larger one
COMFORT = 8.0

# Objects whose natural place depends on the surroundings: indoors a clock may hang on a wall. The others follow the stance
# of their glyph
OUTDOOR_HOMES = {"clock": ("top", "floor"), "umbrella": ("floor", "air")}
INDOOR_HOMES = {"frisbee": ("top", "floor", "air"), "clock": ("air", "top"), "umbrella": ("floor", "air")}
STANCE_HOMES = {"floor": ("floor",), "top": ("top", "floor"), "air": ("air", "floor")}
# Covers that hang or float, and what stands in for them where a thing that usually flies has found its place on the floor
GROUNDED = {"cloud": "hedge", "curtain": "screen"}


@dataclass(frozen=True)
class Veil:
    """How much of an object is hidden, and by what.

    Args:
        kind: "none", "edge" (the frame of the picture), "mist", or the name of a cover.
        side: where the cover comes from: "below", "left" or "right"; empty for "none" and "mist".
        share: the share of the object's area that is hidden, in [0, 1]. For mist it is the density.
        way: the index of the cover's colours.
    """

    kind: str
    side: str = ""
    share: float = 0.0
    way: int = 0


@dataclass(frozen=True)
class Spot:
    """One object in its place, in pixels of the picture.

    Args:
        name: the name of the object.
        sprite: its drawing.
        left, top: the upper left corner of the sprite, which may lie outside the picture.
        home: the kind of surface: "floor", "top" or "air".
        veil: what hides the object. It may differ from the one that was drawn, where that did not suit the place.
        cover: left, top, width and height of what hides the object. None for an object without a cover.
        taken: the rectangle of all that the object and its cover occupy.
    """

    name: str
    sprite: Sprite
    left: int
    top: int
    home: str
    veil: Veil
    cover: tuple[int, int, int, int] | None
    taken: Rect


def choose_veil(name: str, visibility: str, outdoors: bool, rng: random.Random) -> Veil:
    """Draw at random how an object is hidden.

    Args:
        name: the name of the object.
        visibility: "clear", "part" or "heavy".
        outdoors: whether the scene is outdoors, where other things cover objects than indoors.
        rng: the random numbers.
    """
    if visibility == "clear":
        return Veil("none")
    way, draw = rng.randrange(3), rng.random()
    glyph = BANK[name]
    tall = glyph.height > 1.35 * glyph.width
    if draw < 0.28:
        return Veil("mist", "", rng.uniform(*VEIL[visibility]), way)
    share = rng.uniform(*HIDDEN[visibility])
    sideways = rng.choice(("left", "right"))
    if draw < 0.48:
        return Veil("edge", sideways, share, way)
    # Things in the air are hidden by what hangs or floats itself
    if glyph.stance == "air":
        return Veil("cloud", "below", share, way) if outdoors else Veil("curtain", sideways, share, way)
    side = "below" if rng.random() < (0.8 if tall else 0.45) else sideways
    if outdoors:
        return Veil("pier" if side != "below" and rng.random() < 0.4 else "hedge", side, share, way)
    # A cover from the side is as wide as this and as tall as the object. Tall ones are screens, and wide ones cartons
    covered = glyph.width * share
    return Veil("screen" if side != "below" and glyph.height > 1.3 * covered else "carton", side, share, way)


def find_homes(name: str, outdoors: bool) -> tuple[str, ...]:
    """The kinds of surface that an object may stand on, best first."""
    special = OUTDOOR_HOMES if outdoors else INDOOR_HOMES
    return special.get(name, STANCE_HOMES[BANK[name].stance])


def arrange(
    items: Sequence[tuple[str, str]], zones: Sequence[Zone], outdoors: bool, rng: random.Random
) -> list[Spot]:
    """Place objects, and try again with smaller ones while the scene is crowded.

    Args:
        items: name and visibility ("clear", "part" or "heavy") of each object.
        zones: the free surfaces of the backdrop.
        outdoors: whether the scene is outdoors.
        rng: the random numbers. The layout depends on them and the other arguments alone.

    Returns:
        One spot for each item, in the order of the items.
    """
    # How each object looks is drawn once, so that further attempts change sizes and places alone
    looks = []
    for name, visibility in items:
        glyph = BANK[name]
        turn = round(glyph.tilt * rng.choice((-1, -0.4, 0.4, 1)))
        flip = glyph.flips and rng.random() < 0.5
        look = (name, rng.randrange(len(glyph.ways)), rng.randrange(USUAL, len(SIZES)), flip, turn)
        looks.append((look, choose_veil(name, visibility, outdoors, rng)))
    # Large objects first: small ones find room between them, and not the other way round
    order = sorted(range(len(items)), key=lambda i: -BANK[items[i][0]].width * BANK[items[i][0]].height)
    best: dict[int, Spot] = {}
    least = float("inf")
    for step in STEPS:
        spots: dict[int, Spot] = {}

        # The defaults bind the values of this attempt, where a closure would follow the loop
        def seat(i: int, step: int = step, spots: dict[int, Spot] = spots) -> float:
            (name, way, size, flip, turn), veil = looks[i]
            sprite = cut(name, way, SIZES[max(0, size - step)], flip, turn)
            others = [spot.taken for j, spot in spots.items() if j != i]
            spots[i], crowding = _seat(name, sprite, veil, zones, outdoors, others, rng)
            return crowding

        crowded = [i for i in order if seat(i) > CROWDED]
        # Objects without room try again now that all others have their places, and then their neighbours do
        if crowded:
            for i in [*crowded, *order]:
                if _crowd(spots[i].taken, [s.taken for j, s in spots.items() if j != i]) > CROWDED:
                    seat(i)
        # Crowding is measured again: what was placed later may stand too close to what was placed before
        worst = max(
            (_crowd(spots[i].taken, [s.taken for j, s in spots.items() if j != i]) for i in order), default=0
        )
        # If no attempt has room for all objects, the least crowded one is taken
        if worst < least:
            best, least = spots, worst
        if least <= CROWDED:
            break
    return [best[i] for i in range(len(items))]


def _seat(
    name: str,
    sprite: Sprite,
    veil: Veil,
    zones: Sequence[Zone],
    outdoors: bool,
    taken: Sequence[Rect],
    rng: random.Random,
) -> tuple[Spot, float]:
    """The least crowded of some random places on the best kind of surface that has room, and how crowded it is.

    The second value is the largest overlap with a rectangle in ``taken``, from 0 for none to 1.
    """
    best: Spot | None = None
    least = float("inf")
    for home in find_homes(name, outdoors):
        for zone in zones:
            if zone.kind != home:
                continue
            for _ in range(TRIES):
                spot = _try_place(name, sprite, veil, zone, rng)
                if spot is None:
                    break  # what does not fit at one place of the zone fits at none
                crowding = _crowd(spot.taken, taken)
                if crowding < least:
                    best, least = spot, crowding
                if least <= -1:
                    break  # no place can have more room
            if least <= -1:
                break
        if least <= 0:
            break  # the next best kind of surface is only for objects that would overlap here
    if best is None:
        # Too large for every surface of its kind, as tall things in small corners are: it may stand anywhere
        zone = Zone("floor", 1, SIZE - 1, SIZE - 12, SIZE - 4)
        best = _try_place(name, sprite, veil, zone, rng)
        assert best is not None
        least = _crowd(best.taken, taken)
    return best, max(least, 0.0)


def _try_place(name: str, sprite: Sprite, veil: Veil, zone: Zone, rng: random.Random) -> Spot | None:
    """A random place in a zone, or None if the object does not fit there, or if the frame has no edge there to hide it."""
    w, h = sprite.width, sprite.height
    if w > zone.x1 - zone.x0 or (zone.kind == "air" and h > zone.y1 - zone.y0):
        return None
    left = round(rng.uniform(zone.x0, zone.x1 - w))
    if zone.kind == "air":
        top = round(rng.uniform(zone.y0, zone.y1 - h))
    else:  # the lower edge stands on the surface, and what stands may reach above it
        top = max(1, round(rng.uniform(zone.y0, zone.y1)) - h)
    if veil.kind in ("none", "mist"):
        return Spot(name, sprite, left, top, zone.kind, veil, None, (left, top, left + w, top + h))
    if zone.kind != "air" and veil.kind in GROUNDED:
        veil = replace(veil, kind=GROUNDED[veil.kind])
    # The frame can only hide something at a side that the zone reaches
    if veil.kind == "edge":
        sides = [side for side, open_ in (("left", zone.x0 <= 1), ("right", zone.x1 >= SIZE - 1)) if open_]
        if not sides:
            return None
        if veil.side not in sides:
            veil = replace(veil, side=sides[0])
        # The sprite knows the share of its area left of each column, so that the column is found by bisection
        if veil.side == "left":
            left = -bisect_left(sprite.columns, veil.share)
        else:
            left = SIZE - bisect_left(sprite.columns, 1 - veil.share)
        return Spot(name, sprite, left, top, zone.kind, veil, None, (left, top, left + w, top + h))
    # A cover hides by its bumpy edge as well, and therefore begins that much later
    lead = LEAD.get(veil.kind, 0)
    if veil.side == "below":
        depth = max(4, h - bisect_left(sprite.rows, 1 - veil.share) - lead)
        cover = (left - 3, top + h - depth, w + 6, depth + 1)
    elif veil.side == "left":
        cover = (left - 3, top - 3, max(4, bisect_left(sprite.columns, veil.share) + 3 - lead), h + 4)
    else:
        start = min(w - 1, bisect_left(sprite.columns, 1 - veil.share) + lead)
        cover = (left + start, top - 3, w - start + 3, h + 4)
    x0, y0 = min(left, cover[0] - 2), min(top, cover[1] - 2)
    x1, y1 = max(left + w, cover[0] + cover[2] + 2), max(top + h, cover[1] + cover[3])
    return Spot(name, sprite, left, top, zone.kind, veil, cover, (x0, y0, x1, y1))


def _crowd(rect: Rect, taken: Sequence[Rect]) -> float:
    """The largest overlap with any rectangle, as a share of the smaller of the two. It is negative if all keep a gap.

    -1 is a gap of ``COMFORT`` pixels or more to every rectangle.
    """
    worst = -1.0
    x0, y0, x1, y1 = rect
    area = (x1 - x0) * (y1 - y0)
    for a0, b0, a1, b1 in taken:
        across, down = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
        if across > 0 and down > 0:
            worst = max(worst, across * down / min(area, (a1 - a0) * (b1 - b0)))
        elif worst < 0:  # gaps count only as long as nothing overlaps
            worst = max(worst, min(across, down) / COMFORT)
    return worst
