"""Where things go: every object gets a free surface, and its cover or its cut at the frame if it has one."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.demo.backdrops import SIZE, Zone
from sightline.demo.glyphs import BANK, Sprite, cut

Rect = tuple[float, float, float, float]  # left, top, right, bottom
SIZES = (86, 93, 100, 107, 115)
SHRINKS = (1.0, 1.0, 0.95, 0.89, 0.83, 0.77, 0.71)
HIDDEN = {"part": (0.30, 0.50), "heavy": (0.60, 0.85)}
VEIL = {"part": (0.45, 0.56), "heavy": (0.72, 0.82)}
TRIES = 9
CROWDED = 0.03

# Objects whose natural place differs by surroundings; the others follow their glyph's stance.
OUTDOOR_HOMES = {"clock": ("top", "floor"), "frisbee": ("air", "floor")}
INDOOR_HOMES = {"frisbee": ("top", "floor", "air"), "clock": ("air", "top")}
STANCE_HOMES = {"floor": ("floor",), "top": ("top", "floor"), "air": ("air", "top")}


@dataclass(frozen=True)
class Veil:
    """How much of an object is hidden and by what: "none", "edge" (the frame), "mist", or a cover's name.

    side says where the cover comes from; share is the hidden share of its area, for mist its density.
    """

    kind: str
    side: str = ""
    share: float = 0.0
    way: int = 0


@dataclass(frozen=True)
class Spot:
    """One object put in its place: sprite position, the area its cover hides, and all it occupies."""

    name: str
    sprite: Sprite
    left: int
    top: int
    home: str
    veil: Veil
    cover: tuple[int, int, int, int] | None
    taken: Rect


def choose_veil(name: str, visibility: str, outdoors: bool, rng: random.Random) -> Veil:
    """Draw how an object of the given visibility is hidden."""
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
    if BANK[name].stance == "air":
        return Veil("cloud" if outdoors else "curtain", sideways, share, way)
    side = "below" if rng.random() < (0.8 if tall else 0.35) else sideways
    if outdoors:
        return Veil("pier" if side != "below" and rng.random() < 0.4 else "hedge", side, share, way)
    return Veil("screen" if side != "below" and tall else "carton", side, share, way)


def find_homes(name: str, outdoors: bool) -> tuple[str, ...]:
    """Kinds of surface an object may take, best first."""
    special = OUTDOOR_HOMES if outdoors else INDOOR_HOMES
    return special.get(name, STANCE_HOMES[BANK[name].stance])


def arrange(
    items: Sequence[tuple[str, str]], zones: Sequence[Zone], outdoors: bool, rng: random.Random
) -> list[Spot]:
    """Place (name, visibility) pairs, in their order; crowded scenes are tried again with smaller things."""
    looks = []
    for name, visibility in items:
        glyph = BANK[name]
        turn = 2 * round(rng.uniform(-glyph.tilt, glyph.tilt) / 2)
        flip = glyph.flips and rng.random() < 0.5
        look = (name, rng.randrange(len(glyph.ways)), rng.choice(SIZES), flip, turn)
        looks.append((look, choose_veil(name, visibility, outdoors, rng)))
    order = sorted(range(len(items)), key=lambda i: -BANK[items[i][0]].width * BANK[items[i][0]].height)
    best: dict[int, Spot] = {}
    least = float("inf")
    for shrink in SHRINKS:
        spots: dict[int, Spot] = {}
        worst = 0.0
        for i in order:
            (name, way, percent, flip, turn), veil = looks[i]
            sprite = cut(name, way, round(percent * shrink), flip, turn)
            spot, crowding = _seat(name, sprite, veil, zones, outdoors, [s.taken for s in spots.values()], rng)
            spots[i] = spot
            worst = max(worst, crowding)
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
    """The least crowded of some random places, on the best kind of surface that has room."""
    best: Spot | None = None
    least = float("inf")
    for home in find_homes(name, outdoors):
        for zone in zones:
            if zone.kind != home:
                continue
            for _ in range(TRIES):
                spot = _try_place(name, sprite, veil, zone, rng)
                if spot is None:
                    break
                crowding = _crowd(spot.taken, taken)
                if crowding < least:
                    best, least = spot, crowding
        if least <= 0:
            break
    if best is None:
        # Too large for every surface of its kind (tall things in small corners): let it stand anywhere.
        zone = Zone("floor", 1, SIZE - 1, SIZE - 12, SIZE - 4)
        best = _try_place(name, sprite, veil, zone, rng)
        assert best is not None
        least = _crowd(best.taken, taken)
    return best, max(least, 0.0)


def _try_place(name: str, sprite: Sprite, veil: Veil, zone: Zone, rng: random.Random) -> Spot | None:
    """A random place in a zone, or None if the object does not fit there."""
    w, h = sprite.width, sprite.height
    if w > zone.x1 - zone.x0 or (zone.kind == "air" and h > zone.y1 - zone.y0):
        return None
    left = round(rng.uniform(zone.x0, zone.x1 - w))
    if zone.kind == "air":
        top = round(rng.uniform(zone.y0, zone.y1 - h))
    else:
        top = max(1, round(rng.uniform(zone.y0, zone.y1)) - h)
    if veil.kind in ("none", "mist"):
        return Spot(name, sprite, left, top, zone.kind, veil, None, (left, top, left + w, top + h))
    if veil.kind == "edge":
        if veil.side == "left":
            left = -bisect_left(sprite.columns, veil.share)
        else:
            left = SIZE - bisect_left(sprite.columns, 1 - veil.share)
        return Spot(name, sprite, left, top, zone.kind, veil, None, (left, top, left + w, top + h))
    if veil.side == "below":
        depth = h - bisect_left(sprite.rows, 1 - veil.share)
        cover = (left - 3, top + h - depth, w + 6, depth + 1)
    elif veil.side == "left":
        cover = (left - 3, top - 3, bisect_left(sprite.columns, veil.share) + 3, h + 4)
    else:
        start = bisect_left(sprite.columns, 1 - veil.share)
        cover = (left + start, top - 3, w - start + 3, h + 4)
    x0, y0 = min(left, cover[0] - 2), min(top, cover[1] - 2)
    x1, y1 = max(left + w, cover[0] + cover[2] + 2), max(top + h, cover[1] + cover[3])
    return Spot(name, sprite, left, top, zone.kind, veil, cover, (x0, y0, x1, y1))


def _crowd(rect: Rect, taken: Sequence[Rect]) -> float:
    """Largest share of the smaller of two rectangles that both cover; negative when all keep a gap."""
    worst = -1.0
    x0, y0, x1, y1 = rect
    area = (x1 - x0) * (y1 - y0)
    for a0, b0, a1, b1 in taken:
        across, down = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
        if across > 0 and down > 0:
            worst = max(worst, across * down / min(area, (a1 - a0) * (b1 - b0)))
        else:
            worst = max(worst, max(-1.0, min(across, down) / 8, ) if across > -8 and down > -8 else -1.0)
    return worst
