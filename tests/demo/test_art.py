from __future__ import annotations

import random

import pytest
from PIL import Image, ImageChops

from keepsight.demo.art import (
    CONTEXTS,
    GLYPHS,
    SIZE,
    Item,
    UnknownContext,
    UnknownObject,
    UnknownVisibility,
    find_visible_box,
    measure_visible,
    render,
)
from keepsight.demo.backdrops import MOODS, paint
from keepsight.demo.covers import COLOURS, MARGIN, raise_cover
from keepsight.demo.glyphs import BANK, cut
from keepsight.demo.layout import HIDDEN, Spot, arrange
from keepsight.errors import KeepsightError

SEEN = ("clear", "part", "heavy", "clear", "part")
MIXED = ("oven", "cup", "person", "kite", "laptop")


def total(mask: Image.Image) -> int:
    return sum(value * count for value, count in enumerate(mask.histogram()))


def place(name: str, visibility: str, context: str, seed: int) -> Spot:
    backdrop = paint(context, 0, False)
    return arrange([(name, visibility)], backdrop.zones, backdrop.outdoors, random.Random(seed))[0]


def test_names_are_the_28_categories_and_five_places() -> None:
    assert len(GLYPHS) == len(set(GLYPHS)) == 28
    assert CONTEXTS == ("kitchen", "office", "living room", "street", "park")


def test_same_seed_gives_the_same_picture_and_another_seed_does_not() -> None:
    items = [Item(name, visibility) for name, visibility in zip(MIXED, SEEN, strict=True)]
    first, boxes = render("park", items, random.Random(7))
    cut.cache_clear()  # what was drawn before must not matter
    again, same_boxes = render("park", items, random.Random(7))
    other, _ = render("park", items, random.Random(8))
    assert first.tobytes() == again.tobytes()
    assert boxes == same_boxes
    assert first.tobytes() != other.tobytes()


def test_global_randomness_is_not_used() -> None:
    random.seed(1)
    before = random.getstate()
    render("kitchen", [Item("cup", "part")], random.Random(3))
    assert random.getstate() == before


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", GLYPHS)
def test_every_object_shows_in_every_place(context: str, name: str) -> None:
    picture, (placed,) = render(context, [Item(name, "clear")], random.Random(5))
    empty, _ = render(context, [], random.Random(5))
    assert picture.size == (SIZE, SIZE)
    assert picture.mode == "RGB"
    x, y, width, height = placed.box
    assert x >= 0
    assert y >= 0
    assert x + width <= SIZE
    assert y + height <= SIZE
    assert max(width, height) >= 20
    changed = ImageChops.difference(picture, empty).convert("L").point([0] * 8 + [255] * 248)
    inside = total(changed.crop((int(x), int(y), int(x + width), int(y + height)))) / 255
    # The leanest drawing (a diagonal remote) fills more than a quarter of its box; a blank would fill none.
    assert inside > 0.25 * width * height
    assert inside > 0.6 * total(changed) / 255


@pytest.mark.parametrize("visibility", ["part", "heavy"])
@pytest.mark.parametrize("name", GLYPHS)
def test_hidden_share_matches_the_visibility(name: str, visibility: str) -> None:
    low, high = HIDDEN[visibility]
    solid = 0
    for seed in range(12):
        spot = place(name, visibility, CONTEXTS[seed % 5], seed)
        hidden = 1 - total(measure_visible(spot)) / total(spot.sprite.alpha)
        if spot.veil.kind == "mist":
            assert hidden == 0  # mist lies over all of it instead
            assert spot.veil.share > (0.7 if visibility == "heavy" else 0.4)
            continue
        solid += 1
        # Whole pixel columns are hidden and bumpy edges vary: a tolerance of one column or two.
        assert low - 0.12 <= hidden <= high + 0.08
    assert solid > 0


def test_clear_objects_leave_all_and_heavy_ones_few_of_their_pixels_in_the_picture() -> None:
    shares = {}
    for visibility in ("clear", "heavy"):
        kept = drawn = 0
        for seed in range(40):
            name, context = GLYPHS[seed * 5 % 28], CONTEXTS[seed % 5]
            picture, _ = render(context, [Item(name, visibility)], random.Random(seed))
            rng = random.Random(seed)
            backdrop = paint(context, rng.randrange(MOODS), rng.random() < 0.5)
            spot = arrange([(name, visibility)], backdrop.zones, backdrop.outdoors, rng)[0]
            alone = Image.new("RGBA", (SIZE, SIZE))
            alone.paste(spot.sprite.image, (spot.left, spot.top))
            light = Image.new("RGB", (SIZE, SIZE), backdrop.light)
            lit = ImageChops.multiply(alone.convert("RGB"), light)
            gap = ImageChops.difference(lit, picture).convert("L").point([255] * 6 + [0] * 250)
            opaque = alone.getchannel("A").point([0] * 255 + [255])
            kept += total(ImageChops.multiply(gap, opaque))
            drawn += total(spot.sprite.alpha.point([0] * 255 + [255]))
        shares[visibility] = kept / drawn
    assert shares["clear"] > 0.99
    assert shares["heavy"] < 0.35


def test_the_box_shrinks_to_what_shows() -> None:
    cuts = [place("car", "heavy", "street", seed) for seed in range(40)]
    edges = [spot for spot in cuts if spot.veil.kind == "edge"]
    assert edges
    for spot in edges:
        x, _, width, _ = find_visible_box(spot)
        assert width < 0.6 * spot.sprite.width
        assert x == 0 or x + width == SIZE


def test_seven_objects_hardly_cover_each_other() -> None:
    crowded = 0
    for seed in range(40):
        rng = random.Random(seed)
        names = rng.sample(GLYPHS, 7)
        _, placed = render(CONTEXTS[seed % 5], [Item(name, "clear") for name in names], rng)
        assert [p.name for p in placed] == names
        for i, first in enumerate(placed):
            for second in placed[i + 1 :]:
                (a, b, w, h), (c, d, v, u) = first.box, second.box
                across, down = min(a + w, c + v) - max(a, c), min(b + h, d + u) - max(b, d)
                crowded += across > 0 and down > 0 and across * down > 0.2 * min(w * h, v * u)
    assert crowded <= 12  # of 840 pairs


@pytest.mark.parametrize("kind", sorted(COLOURS))
def test_a_cover_is_opaque_in_its_middle(kind: str) -> None:
    alpha = raise_cover(kind, 24, 30, 1).getchannel("A")
    assert alpha.crop((MARGIN + 4, MARGIN + 4, MARGIN + 20, MARGIN + 26)).getextrema() == (255, 255)


def test_all_colourways_of_an_object_share_its_shape_but_not_its_colours() -> None:
    for name, glyph in BANK.items():
        sprites = [cut(name, way, 100, False, 0) for way in range(len(glyph.ways))]
        assert len(sprites) >= 3
        assert len({s.alpha.tobytes() for s in sprites}) == 1
        assert len({s.image.tobytes() for s in sprites}) == len(sprites)


def test_unknown_names_raise_named_errors() -> None:
    with pytest.raises(UnknownObject, match="no drawing of 'zebra'"):
        render("park", [Item("zebra", "clear")], random.Random(0))
    with pytest.raises(UnknownContext, match="no place called 'moon'"):
        render("moon", [], random.Random(0))
    with pytest.raises(UnknownVisibility, match="no visibility 'half'"):
        render("park", [Item("dog", "half")], random.Random(0))
    assert issubclass(UnknownObject, KeepsightError)
    assert issubclass(UnknownObject, ValueError)
