"""Build POPE's questions about objects that are in a picture and about absent objects, which are chosen in three ways.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", 2023 (arXiv 2305.10355).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from keepsight.errors import InvalidParameter
from keepsight.eval.errors import TooFewObjects
from keepsight.eval.pope.answer_parsers import Answer
from keepsight.eval.pope.files import KINDS

PER_IMAGE = 3
"""How many objects of each picture POPE asks about; it asks about as many absent ones."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A picture and the distinct names of its objects, of which POPE asks about the first ones."""

    image: str
    objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltQuestion:
    """A question as POPE's files hold it; `object` is the name of the object that it asks about."""

    question_id: int
    image: str
    object: str
    label: Answer

    @property
    def text(self) -> str:
        """The question in words."""
        return question_text(self.object)

    def to_json(self) -> dict[str, Any]:
        """Return the question as a line of POPE's files holds it."""
        return {
            "question_id": self.question_id,
            "image": self.image,
            "text": self.text,
            "label": self.label,
        }


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build` made.

    Attributes:
        questions: the questions by kind ("random", "popular", "adversarial"), picture by picture, a question whose answer
            is yes before each one whose answer is no.
        images: the drawn pictures, in the order in which they were drawn.
        counts: number of these pictures that each object is in; objects stand in the order in which they first come.
        together: for each object, the objects that share a picture with it, the most frequent first.
        eligible: number of pictures that had enough objects to be drawn.
    """

    questions: Mapping[str, tuple[BuiltQuestion, ...]]
    images: tuple[Annotated, ...]
    counts: Mapping[str, int]
    together: Mapping[str, tuple[str, ...]]
    eligible: int

    def files(self, name: str = "coco") -> dict[str, str]:
        """Return the contents of files by their names, laid out as the official builder writes them."""
        lines = {
            f"{name}_pope_{kind}.json": "".join(
                json.dumps(question.to_json(), ensure_ascii=False) + "\n" for question in questions
            )
            for kind, questions in self.questions.items()
        }
        return lines | {
            f"{name}_ground_truth_objects.json": json.dumps(dict(self.counts), ensure_ascii=False),
            f"{name}_co_occur.json": json.dumps(
                {one: list(others) for one, others in self.together.items()}, ensure_ascii=False
            ),
        }


def question_text(name: str) -> str:
    """Return POPE's question about an object, with "an" before a, e, i, o and u.

    The official builder replaces "a" by "an" in the whole sentence, so that it asks about "the imange"; here only the
    article changes.

    >>> question_text("umbrella")
    'Is there an umbrella in the image?'
    """
    return f"Is there {'an' if name[:1] in 'aeiou' else 'a'} {name} in the image?"


def build(
    pictures: Sequence[Annotated], *, images: int = 500, per_image: int = PER_IMAGE, seed: int = 0
) -> Built:
    """Draw pictures and choose what to ask about each of them, as the official builder does.

    Of the pictures with at least `per_image` objects, `images` are drawn. The first `per_image` objects of each drawn
    picture are asked about, and the right answer is yes. Each such question is followed by one about an object that is
    absent from the picture and that was not asked about in it before:

    - random: objects of all drawn pictures are drawn until one fits;
    - popular: of the objects in the order of how many pictures they are in, the first that fits;
    - adversarial: of the objects in the order of how often they share a picture with the object of the question
      before, the first that fits, or a random object if none fits.

    How many pictures an object is in, and with which others, is counted in the drawn pictures alone. The kinds are made
    in this order from one stream of `random.Random(seed)`, so that a seed gives the questions of the official builder for
    that seed, apart from its misspelling (see `question_text`). The official script sets no seed, so that the published
    files themselves cannot be built again.

    Args:
        pictures: the pictures to draw from.
        images: number of pictures to draw, 1 or more.
        per_image: number of present, and of absent, objects to ask about in each picture, 1 or more.
        seed: seed of all draws.

    Raises:
        InvalidParameter: `images` or `per_image` is below 1.
        TooFewObjects: there are too few pictures with enough objects, or too few objects are absent from a picture (the
            official builder would never end then).
    """
    if images < 1 or per_image < 1:
        raise InvalidParameter(f"images={images} and per_image={per_image} must be 1 or more")
    eligible = [picture for picture in pictures if len(picture.objects) >= per_image]
    if len(eligible) < images:
        raise TooFewObjects(
            f"{images} pictures are wanted, but only {len(eligible)} of {len(pictures)} have {per_image} objects or more;"
            " ask for fewer (--images), or for fewer objects of each (--per-image)"
        )
    stream = random.Random(seed)
    drawn = stream.sample(eligible, images)
    # The order in which objects are first met is part of the result: it breaks ties of frequency, and random objects are
    # drawn from the names in this order.
    counts: Counter[str] = Counter(name for picture in drawn for name in picture.objects)
    together = {one: _by_frequency(company) for one, company in _company(drawn).items()}
    # `_absent` draws until a name fits, and would never end in a picture that runs out of absent objects.
    for picture in drawn:
        left = len(counts.keys() - set(picture.objects))
        if left < per_image:
            raise TooFewObjects(
                f"{picture.image!r}: {per_image} absent objects are wanted, but of the {len(counts)} kinds of objects in the"
                f" drawn pictures only {left} are not in it; ask for more pictures (--images), or fewer objects of each"
            )
    names, popular = list(counts), _by_frequency(counts)
    lists: dict[str, Callable[[str], Sequence[str]]] = {
        "random": lambda positive: (),
        "popular": lambda positive: popular,
        "adversarial": lambda positive: together[positive],
    }
    # The three kinds share one stream of random numbers, so that making them in another order would change the questions.
    questions = {kind: _ask(drawn, per_image, names, lists[kind], stream) for kind in KINDS}
    return Built(
        questions=questions,
        images=tuple(drawn),
        counts=dict(counts),
        together=together,
        eligible=len(eligible),
    )


def _ask(
    drawn: Sequence[Annotated],
    per_image: int,
    names: Sequence[str],
    candidates: Callable[[str], Sequence[str]],
    stream: random.Random,
) -> tuple[BuiltQuestion, ...]:
    """Return the questions of one kind; `candidates` maps a present object to the absent ones to try before random ones."""
    asked: list[BuiltQuestion] = []
    for picture in drawn:
        # Objects that are in the picture, and absent ones that were asked about already: no question comes twice.
        taken = set(picture.objects)
        for positive in picture.objects[:per_image]:
            negative = _absent(taken, candidates(positive), names, stream)
            taken.add(negative)
            number, image = len(asked) + 1, picture.image  # POPE numbers the questions of each file from 1
            asked += [
                BuiltQuestion(question_id=number, image=image, object=positive, label="yes"),
                BuiltQuestion(question_id=number + 1, image=image, object=negative, label="no"),
            ]
    return tuple(asked)


def _absent(taken: Set[str], candidates: Sequence[str], names: Sequence[str], stream: random.Random) -> str:
    """Return the first candidate that is not taken, else a random name that is not; `build` checked that there is one."""
    for name in candidates:
        if name not in taken:
            return name
    # Names are drawn until one fits, instead of once from those that fit, because the official builder uses up the random
    # stream in this way, and the questions that follow depend on it.
    while (name := stream.choice(names)) in taken:
        pass
    return name


def _company(drawn: Sequence[Annotated]) -> dict[str, Counter[str]]:
    """Return, for each object, in how many pictures it is together with each other object."""
    company: dict[str, Counter[str]] = {}
    for picture in drawn:
        for name in picture.objects:
            company.setdefault(name, Counter()).update(other for other in picture.objects if other != name)
    return company


def _by_frequency(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names, most frequent first; a tie keeps the order first met, as in the official builder's stable sort."""
    return tuple(sorted(counts, key=lambda name: -counts[name]))
