"""The demo world: drawn scenes of 28 COCO categories whose objects come in habitual company.

A scene is a pure function of ``(split, index, seed)``. Five contexts hold an ordered chain of objects each;
a child object nearly always accompanies its parent (a laptop brings a keyboard, a keyboard brings a mouse), and
that habit is what a captioner trained here can lean on instead of looking. Two evaluation distributions exist:

* ``val`` and ``test`` follow the habits, as ``train`` does, with an object of another context in 35 % of the scenes;
* ``val-shifted`` and ``test-shifted`` break them: parents stay (with 0.8 of their probability), what usually
  comes along is there in 12 % of the scenes only, and zero to two objects of other contexts appear.

``train-mixed`` is the smaller part of the training scenes. It breaks the habits in another way than the shifted
splits: every object of the context is there or not with probability 0.4, parents or not, beside one to three
objects of other contexts.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from keepsight.demo.art import SIZE, Item, Placed, render
from keepsight.errors import KeepsightError

SPLITS = ("train", "val", "val-shifted", "test", "test-shifted", "train-mixed")
IDS_PER_SPLIT = 10_000_000
NOISE = 6.0
"""Standard deviation of the pixel noise on every picture, in grey levels of 255."""
VISIBILITY = (("clear", 0.62), ("part", 0.23), ("heavy", 0.15))
Negatives = Literal["random", "popular", "adversarial"]


class WorldError(KeepsightError):
    """A split, index or option that the demo world does not have."""


class Category(NamedTuple):
    """A COCO category: official id, name and supercategory."""

    id: int
    name: str
    supercategory: str


class Habit(NamedTuple):
    """An object of a context: present with ``p`` when its parent is (or it has none), else with ``alone``."""

    name: str
    p: float
    parent: str | None = None
    alone: float = 0.0


CATEGORIES = (
    Category(79, "oven", "appliance"),
    Category(82, "refrigerator", "appliance"),
    Category(51, "bowl", "kitchen"),
    Category(47, "cup", "kitchen"),
    Category(44, "bottle", "kitchen"),
    Category(52, "banana", "food"),
    Category(73, "laptop", "electronic"),
    Category(76, "keyboard", "electronic"),
    Category(74, "mouse", "electronic"),
    Category(84, "book", "indoor"),
    Category(62, "chair", "furniture"),
    Category(85, "clock", "indoor"),
    Category(63, "couch", "furniture"),
    Category(72, "tv", "electronic"),
    Category(75, "remote", "electronic"),
    Category(64, "potted plant", "furniture"),
    Category(17, "cat", "animal"),
    Category(3, "car", "vehicle"),
    Category(10, "traffic light", "outdoor"),
    Category(2, "bicycle", "vehicle"),
    Category(1, "person", "person"),
    Category(13, "stop sign", "outdoor"),
    Category(15, "bench", "outdoor"),
    Category(18, "dog", "animal"),
    Category(34, "frisbee", "sports"),
    Category(16, "bird", "animal"),
    Category(38, "kite", "sports"),
    Category(28, "umbrella", "accessory"),
)
NAMES = tuple(category.name for category in CATEGORIES)
"""The 28 category names in canonical order: captions name objects in this order, out-of-context ones last."""

CONTEXTS: dict[str, tuple[Habit, ...]] = {
    "kitchen": (
        Habit("oven", 0.85),
        Habit("refrigerator", 0.88, "oven", 0.35),
        Habit("bowl", 0.60),
        Habit("cup", 0.90, "bowl", 0.20),
        Habit("bottle", 0.85, "cup", 0.15),
        Habit("banana", 0.30),
    ),
    "office": (
        Habit("laptop", 0.92),
        Habit("keyboard", 0.92, "laptop", 0.08),
        Habit("mouse", 0.93, "keyboard", 0.05),
        Habit("book", 0.45),
        Habit("chair", 0.80, "book", 0.25),
        Habit("clock", 0.35),
    ),
    "living room": (
        Habit("couch", 0.90),
        Habit("tv", 0.88, "couch", 0.15),
        Habit("remote", 0.92, "tv", 0.05),
        Habit("potted plant", 0.50),
        Habit("cat", 0.75, "potted plant", 0.20),
    ),
    "street": (
        Habit("car", 0.92),
        Habit("traffic light", 0.90, "car", 0.10),
        Habit("bicycle", 0.50),
        Habit("person", 0.92, "bicycle", 0.25),
        Habit("stop sign", 0.35),
    ),
    "park": (
        Habit("bench", 0.85),
        Habit("dog", 0.80, "bench", 0.20),
        Habit("frisbee", 0.92, "dog", 0.05),
        Habit("bird", 0.45),
        Habit("kite", 0.80, "bird", 0.10),
        Habit("umbrella", 0.30),
    ),
}
PLACES = {
    "kitchen": "on the counter",
    "office": "in the room",
    "living room": "near the wall",
    "street": "by the road",
    "park": "on the grass",
}
_ORDER = {name: index for index, name in enumerate(NAMES)}
_BY_NAME = {category.name: category for category in CATEGORIES}


@dataclass(frozen=True)
class Scene:
    """One scene of the demo world: what is in it, and the picture of it on demand.

    ``image_id`` is unique over all splits of one seed. ``items`` are the objects with their visibility
    (``clear``, ``part`` or ``heavy``: the last is 60 to 85 % hidden), in drawing order.
    """

    image_id: int
    split: str
    context: str
    items: tuple[Item, ...]
    seed: str

    @property
    def names(self) -> tuple[str, ...]:
        """The categories present: those of the context in canonical order, then the others in theirs."""
        own = {habit.name for habit in CONTEXTS[self.context]}
        return tuple(sorted({item.name for item in self.items}, key=lambda name: (name not in own, _ORDER[name])))

    @property
    def objects(self) -> tuple[Placed, ...]:
        """The objects as drawn, each with its box ``(x, y, width, height)`` in pixels."""
        return _draw(self)[1]

    def image(self) -> Image.Image:
        """The picture, RGB, 128 by 128 pixels; the same pixels on every call."""
        return _draw(self)[0].copy()

    def caption(self) -> str:
        """The reference caption: it names every category present once and nothing else."""
        return write_caption(self.context, self.names, random.Random(f"caption/{self.seed}"))


@lru_cache(maxsize=256)
def _draw(scene: Scene) -> tuple[Image.Image, tuple[Placed, ...]]:
    rng = random.Random(f"draw/{scene.seed}")
    picture, placed = render(scene.context, scene.items, rng)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0.0, NOISE, (SIZE, SIZE, 3))
    pixels = np.clip(np.asarray(picture, dtype=np.float64) + noise, 0.0, 255.0).round().astype(np.uint8)
    return Image.fromarray(pixels), tuple(placed)


def scene(split: str, index: int, seed: int = 0) -> Scene:
    """The ``index``-th scene of a split, from its arguments alone.

    Raises ``WorldError`` for an unknown split or an index outside ``0 .. IDS_PER_SPLIT - 1``.
    """
    if split not in SPLITS:
        raise WorldError(f"the demo world has no split {split!r}: use one of {', '.join(SPLITS)}")
    if not 0 <= index < IDS_PER_SPLIT:
        raise WorldError(f"scene index {index} is out of range: use 0 to {IDS_PER_SPLIT - 1}")
    key = f"{split}/{seed}/{index}"
    rng = random.Random(key)
    context = rng.choice(tuple(CONTEXTS))
    names = _habitual(context, rng)
    if split.endswith("-shifted"):
        names = _shifted(context, rng)
    elif split == "train-mixed":
        names = _mixed(context, rng)
    levels, weights = [level for level, _ in VISIBILITY], [weight for _, weight in VISIBILITY]
    rng.shuffle(names)
    items = tuple(Item(name, rng.choices(levels, weights)[0]) for name in names)
    return Scene(SPLITS.index(split) * IDS_PER_SPLIT + index, split, context, items, key)


def scenes(split: str, n: int, seed: int = 0) -> list[Scene]:
    """The first ``n`` scenes of a split."""
    return [scene(split, index, seed) for index in range(n)]


def _habitual(context: str, rng: random.Random) -> list[str]:
    present: list[str] = []
    for habit in CONTEXTS[context]:
        likely = habit.parent is None or habit.parent in present
        if rng.random() < (habit.p if likely else habit.alone):
            present.append(habit.name)
    return _with_extras(context, present, int(rng.random() < 0.35), rng)


def _shifted(context: str, rng: random.Random) -> list[str]:
    chances = {habit.name: 0.12 if habit.parent else 0.8 * habit.p for habit in CONTEXTS[context]}
    return _with_extras(context, _drawn(chances, rng), rng.randint(0, 2), rng)


def _mixed(context: str, rng: random.Random) -> list[str]:
    chances = {habit.name: 0.4 for habit in CONTEXTS[context]}
    return _with_extras(context, _drawn(chances, rng), rng.randint(1, 3), rng)


def _drawn(chances: dict[str, float], rng: random.Random) -> list[str]:
    return [name for name, chance in chances.items() if rng.random() < chance]


def _with_extras(context: str, present: list[str], extras: int, rng: random.Random) -> list[str]:
    own = [habit.name for habit in CONTEXTS[context]]
    if not present and not extras:
        present = [own[0]]
    return present + rng.sample([name for name in NAMES if name not in own], extras)


def with_article(name: str) -> str:
    """``name`` with its indefinite article: ``a cup``, ``an oven``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_caption(context: str, names: Sequence[str], rng: random.Random) -> str:
    """A caption of one to three sentences that names ``names`` in the order given, with wording drawn from ``rng``."""
    first = rng.choice((2, 2, 3))
    opening, second, last = names[:first], names[first : first + 3], names[first + 3 :]
    place = PLACES[context]
    openers = (
        f"{_capital(with_article(context))} with {_listed(opening)}.",
        f"This {context} has {_listed(opening)}.",
        f"{_capital(_listed(opening))} in {with_article(context)}.",
    )
    sentences = [rng.choices(openers, (0.6, 0.25, 0.15))[0]]
    if second:
        followers = (
            f"There is also {_listed(second)}.",
            f"There is {_listed(second)} {place}.",
            f"{_capital(_listed(second))} can be seen {place}.",
        )
        sentences.append(rng.choices(followers, (0.45, 0.35, 0.2))[0])
    if last:
        sentences.append(f"{_capital(_listed(last))} can be seen as well.")
    return " ".join(sentences)


def _listed(names: Sequence[str]) -> str:
    phrases = [with_article(name) for name in names]
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def ask(name: str) -> str:
    """The yes/no question of POPE about a category."""
    return f"Is there {with_article(name)} in the image?"


def questions(scene: Scene, negatives: Negatives = "random", n: int = 3) -> list[tuple[str, Literal["yes", "no"]]]:
    """POPE-like questions: up to ``n`` about categories present ("yes") and as many about absent ones ("no").

    ``negatives`` picks the absent ones: ``random`` among all, ``popular`` by how often the habits of all contexts
    bring them, ``adversarial`` first those of the scene's own context, the most habitual first. The questions
    alternate, and depend on the scene alone. Raises ``WorldError`` for another value of ``negatives``.
    """
    rng = random.Random(f"questions/{scene.seed}")
    present = rng.sample(scene.names, min(n, len(scene.names)))
    absent = [name for name in NAMES if name not in scene.names]
    rng.shuffle(absent)
    own = {habit.name for habit in CONTEXTS[scene.context]}
    if negatives == "popular":
        absent.sort(key=lambda name: -_frequencies()[name])
    elif negatives == "adversarial":
        absent.sort(key=lambda name: (name not in own, -_frequencies()[name]))
    elif negatives != "random":
        raise WorldError(f"no negatives {negatives!r}: use random, popular or adversarial")
    asked: list[tuple[str, Literal["yes", "no"]]] = []
    for there, missing in zip(present, absent, strict=False):
        asked += [(ask(there), "yes"), (ask(missing), "no")]
    return asked


@lru_cache(maxsize=1)
def _frequencies() -> dict[str, float]:
    """How often the habits bring each category, within its context (the contexts are equally frequent)."""
    chances: dict[str, float] = {}
    for habits in CONTEXTS.values():
        for name, p, parent, alone in habits:
            above = 1.0 if parent is None else chances[parent]
            chances[name] = above * p + (1.0 - above) * alone
    return chances


def annotations(scenes: Iterable[Scene]) -> dict[str, Any]:
    """The scenes as a COCO *instances* dictionary: ``images``, ``annotations`` and ``categories``.

    ``json.dump`` it and pycocotools loads it. Boxes are ``[x, y, width, height]`` in pixels, the area is the box's.
    """
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for one in scenes:
        name = f"{one.split}-{one.image_id % IDS_PER_SPLIT:06d}.png"
        images.append({"id": one.image_id, "width": SIZE, "height": SIZE, "file_name": name})
        for placed in one.objects:
            x, y, width, height = (float(side) for side in placed.box)
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": one.image_id,
                    "category_id": _BY_NAME[placed.name].id,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "Keepsight demo world"},
        "images": images,
        "annotations": instances,
        "categories": [category._asdict() for category in CATEGORIES],
    }
