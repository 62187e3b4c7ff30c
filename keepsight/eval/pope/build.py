"""POPE: questions about objects that are in a picture and about objects that are not, chosen in three ways.

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


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A picture and what is in it: distinct names, whose order decides what is asked about first."""

    image: str
    objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltQuestion:
    """A question as POPE's files hold it; `object` is what it asks about."""

    question_id: int
    image: str
    object: str
    label: Answer

    @property
    def text(self) -> str:
        """The question in words."""
        return question_text(self.object)

    def to_json(self) -> dict[str, Any]:
        """A line of the question file."""
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
        questions: by kind ("random", "popular", "adversarial"), picture by picture, yes and no in turn.
        images: the pictures drawn, in the order drawn.
        counts: in how many of these pictures each object is, in the order first met.
        together: for each object those that share a picture with it, the most frequent first.
        eligible: how many pictures had enough objects.
    """

    questions: Mapping[str, tuple[BuiltQuestion, ...]]
    images: tuple[Annotated, ...]
    counts: Mapping[str, int]
    together: Mapping[str, tuple[str, ...]]
    eligible: int

    def files(self, name: str = "coco") -> dict[str, str]:
        """File names and contents, as the official builder lays them out."""
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
    """POPE's question about an object, with "an" before a, e, i, o and u.

    The official builder changes the article by replacing letters all over the sentence and asks about "the imange".

    >>> question_text("umbrella")
    'Is there an umbrella in the image?'
    """
    return f"Is there {'an' if name[:1] in 'aeiou' else 'a'} {name} in the image?"


def build(
    pictures: Sequence[Annotated], *, images: int = 500, per_image: int = PER_IMAGE, seed: int = 0
) -> Built:
    """Draw pictures and choose what to ask about each, as the official builder does.

    Of the pictures with at least `per_image` objects, `images` are drawn. Each is asked about its first
    `per_image` objects, whose answer is yes. After each of them comes an object that is not in the picture and
    that it was not asked about yet:

    - random: drawn from all objects of the drawn pictures until one fits;
    - popular: the first that fits of those in the most pictures;
    - adversarial: the first that fits of those most often together with the object asked about before; where
      none fits, a random one.

    Popularity and company are counted in the drawn pictures alone. The kinds are made in this order from one
    stream of `random.Random(seed)`, so a seed gives the official builder's questions for that seed, but for its
    misspelling (see `question_text`). That script sets no seed: the published files cannot be made again.

    Raises:
        InvalidParameter: `images` or `per_image` is below 1.
        TooFewObjects: there are fewer pictures with enough objects, or a picture is left without an object to
            ask for (the official builder never ends then).
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
    counts: Counter[str] = Counter(name for picture in drawn for name in picture.objects)
    together = {one: _by_frequency(company) for one, company in _company(drawn).items()}
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
    asked: list[BuiltQuestion] = []
    for picture in drawn:
        taken = set(picture.objects)
        for positive in picture.objects[:per_image]:
            negative = _absent(taken, candidates(positive), names, stream)
            taken.add(negative)
            number, image = len(asked) + 1, picture.image
            asked += [
                BuiltQuestion(question_id=number, image=image, object=positive, label="yes"),
                BuiltQuestion(question_id=number + 1, image=image, object=negative, label="no"),
            ]
    return tuple(asked)


def _absent(taken: Set[str], candidates: Sequence[str], names: Sequence[str], stream: random.Random) -> str:
    """The first candidate that is not taken, else a random name that is not; `build` saw to it that there is one."""
    for name in candidates:
        if name not in taken:
            return name
    # Drawn until one fits, rather than from those that fit: the official builder uses up the random stream in this way,
    # and the questions that follow depend on it.
    while (name := stream.choice(names)) in taken:
        pass
    return name


def _company(drawn: Sequence[Annotated]) -> dict[str, Counter[str]]:
    company: dict[str, Counter[str]] = {}
    for picture in drawn:
        for name in picture.objects:
            company.setdefault(name, Counter()).update(other for other in picture.objects if other != name)
    return company


def _by_frequency(counts: Mapping[str, int]) -> tuple[str, ...]:
    """The most frequent first; equals in the order first met, as the official builder's stable sort leaves them."""
    return tuple(sorted(counts, key=lambda name: -counts[name]))
