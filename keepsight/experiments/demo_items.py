"""The demo world's benchmarks: scenes to describe, questions about them, and pictures with one object taken out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, get_args

from keepsight.demo.world import (
    IDS_PER_SPLIT,
    NAMES,
    NOISE,
    Negatives,
    Scene,
    ask,
    questions,
    scene,
)
from keepsight.experiments.benchmark import DESCRIBE, Item

if TYPE_CHECKING:
    from PIL.Image import Image

POPE_OBJECTS = 3
"""How many objects a picture must show for POPE to ask about it, and how many questions of each answer and kind it gets."""
REMOVED, ABSENT = 2, 4
"""The most objects that BEAF takes out of one picture, one at a time, and how many absent objects it asks about."""


def chair(split: str, n: int, seed: int) -> Iterator[Item]:
    """One question about each of the first ``n`` scenes of a split."""
    for one in (scene(split, index, seed) for index in range(n)):
        yield Item(
            id=one.seed,
            image_id=one.image_id,
            question=DESCRIBE,
            truth={"objects": list(one.names)},
            picture=one.image,
        )


def pope(split: str, n: int, seed: int) -> Iterator[Item]:
    """Three questions of each answer and kind about each of the first ``n`` scenes that show three objects."""
    for one in _with_objects(split, n, seed, POPE_OBJECTS):
        for kind in get_args(Negatives):
            for number, (question, label) in enumerate(questions(one, kind, POPE_OBJECTS), start=1):
                # The world gives the text of a question alone, so its object is found by asking about each.
                name = next(name for name in NAMES if ask(name) == question)
                yield Item(
                    id=f"{one.seed}/{kind}/{number}",
                    image_id=one.image_id,
                    question=question,
                    truth={"label": label, "split": kind, "object": name},
                    picture=one.image,
                )


def beaf(split: str, n: int, seed: int) -> Iterator[Item]:
    """Questions about the first ``n`` scenes that show two objects or more, whole and without one of up to two of
    their objects.

    Pictures are named as in the official file: an edited picture has its original's name and two digits.
    """
    for one in _with_objects(split, n, seed, 2):
        # Each scene has random numbers of its own, so that its questions do not depend on how many scenes are asked
        # about.
        rng = random.Random(f"beaf/{one.seed}")
        removed = rng.sample(one.names, min(REMOVED, len(one.names)))
        absent = rng.sample([name for name in NAMES if name not in one.names], ABSENT)
        stem = one.seed.replace("/", "_")
        for number, gone in enumerate([None, *removed]):
            file = f"{stem}.jpg" if gone is None else f"{stem}_{number:02d}.png"
            picture = one.image if gone is None else partial(without, one, gone)
            for name in (*one.names, *absent):
                there = name in one.names and name != gone
                yield Item(
                    id=f"{file}/{name}",
                    image_id=file.rpartition(".")[0],
                    question=ask(name),
                    truth={
                        "label": "yes" if there else "no",
                        "image": file,
                        "orig_img": gone is None,
                        "removed_q": name in removed,
                    },
                    picture=picture,
                )


def without(one: Scene, name: str | None) -> Image:
    """The picture of a scene with one object left undrawn, together with the object's shadow and with what hides the
    object.

    Everything else is where it was and as it was, noise included. With ``name=None`` the picture equals
    ``one.image()``, bit for bit.
    """
    # The picture is cached, and a caller that draws on it must not change what later callers get.
    return _edited(one, name).copy()


# Every edited picture is asked about all objects of its scene, one question after the other, and is drawn once for all
# of them.
@lru_cache(maxsize=64)
def _edited(one: Scene, name: str | None) -> Image:
    """The picture that ``without`` copies."""
    import numpy as np
    from PIL import Image, ImageChops

    # The world draws whole scenes only. This function takes the same random numbers in the same order, and leaves one spot
    # out. The files of the world stay as they are, since the training log of the weights holds their digests.
    from keepsight.demo.art import _draw, _fill
    from keepsight.demo.backdrops import MOODS, SIZE, paint
    from keepsight.demo.layout import arrange

    rng = random.Random(f"draw/{one.seed}")
    backdrop = paint(one.context, rng.randrange(MOODS), rng.random() < 0.5)
    spots = arrange(
        [(item.name, item.visibility) for item in one.items], backdrop.zones, backdrop.outdoors, rng
    )
    picture = backdrop.image.copy()
    for spot in sorted(spots, key=lambda spot: (spot.home != "air", spot.top + spot.sprite.height)):
        if spot.name != name:
            _draw(picture, spot, backdrop)
    if backdrop.light != "#ffffff":
        picture = ImageChops.multiply(picture, _fill(backdrop.light))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0.0, NOISE, (SIZE, SIZE, 3))
    pixels = np.clip(np.asarray(picture, dtype=np.float64) + noise, 0.0, 255.0).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _with_objects(split: str, n: int, seed: int, least: int) -> Iterator[Scene]:
    """The first ``n`` scenes that show at least ``least`` kinds of objects; fewer where the split has no more."""
    found = 0
    for index in count():
        # A split has so many scenes and no more.
        if found == n or index == IDS_PER_SPLIT:
            return
        one = scene(split, index, seed)
        if len(one.names) >= least:
            found += 1
            yield one
