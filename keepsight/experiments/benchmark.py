"""A benchmark: the questions that are asked, the pictures they are about, and the right answers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from keepsight.errors import did_you_mean
from keepsight.eval.image_ids import ImageId
from keepsight.experiments.errors import BadBenchmark

if TYPE_CHECKING:
    from PIL.Image import Image

Name = Literal["chair", "pope", "beaf"]
NAMES: tuple[Name, ...] = get_args(Name)
DESCRIBE = "Describe this image."
"""The question that a CHAIR benchmark asks about every picture."""
USER = "user"
"""The name of the split of every benchmark that is made of the user's own files."""


@dataclass(frozen=True, kw_only=True)
class ItemRecord:
    """One question about one picture, without the picture itself, as the folder of a run keeps it.

    Args:
        id: the id of the question, unique within the benchmark.
        image_id: the id of the picture; several questions may be about one picture.
        question: the question that the model is asked.
        truth: the right answer. For chair it is ``{"objects": [names] or None}``, with None where the objects are not known.
            For pope it is ``{"label": "yes" or "no", "split": "random", "popular", "adversarial" or a file's name,
            "object": name or None}``. For beaf it is, as in the official file, ``{"label", "image": file name,
            "orig_img": bool, "removed_q": bool}``.
    """

    id: str
    image_id: ImageId
    question: str
    truth: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The question as the dictionary that becomes a line of ``items.jsonl``."""
        return {
            "id": self.id,
            "image_id": self.image_id,
            "question": self.question,
            "truth": dict(self.truth),
        }


@dataclass(frozen=True, kw_only=True)
class Item(ItemRecord):
    """A question together with its picture.

    Args:
        picture: opens the picture when it is called: an RGB image, with the same pixels on every call.
    """

    # A benchmark of thousands of pictures would not fit into memory, so each picture is opened when it is needed. A
    # function has no useful equality or text, so it stays out of both.
    picture: Callable[[], Image] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions about pictures in a fixed order, with all questions about one picture next to each other.

    Args:
        name: which scorer the answers are for.
        split: a split of the demo world, or ``user``.
        source: where the questions come from, in words.
        items: the questions, at least one.
        family: the CHAIR family in which reference captions were read for ``truth``; None where there were no captions.

    Raises:
        BadBenchmark: there is no question, or an id occurs twice.
    """

    name: Name
    split: str
    source: str
    items: tuple[Item, ...]
    family: str | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise BadBenchmark(f"the {self.name} bench from {self.source} asks nothing")
        # Answers are found by the ids of their questions, so that a question with the id of another would never be
        # asked.
        twice = [one for one, times in Counter(item.id for item in self.items).items() if times > 1]
        if twice:
            raise BadBenchmark(
                f"the {self.name} bench from {self.source} holds question {twice[0]!r} twice: keep one"
            )

    @cached_property
    def digest(self) -> str:
        """The digest of the questions, see the function ``digest``."""
        return digest(self.items)

    def head(self) -> dict[str, Any]:
        """The facts about the benchmark that a manifest records, as JSON."""
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "family": self.family,
            "n": len(self.items),
            "digest": self.digest,
        }


def digest(items: Iterable[ItemRecord]) -> str:
    """The SHA-256, in hexadecimal, over ids, ids of pictures, questions and truths in their order.

    Pixels are not part of it: two benchmarks with equal ids and other pictures have the same digest.
    """
    found = hashlib.sha256()
    for item in items:
        # The same digest is taken of a benchmark in memory and of the lines in a run's folder, so sorted keys and plain
        # ASCII make the text independent of how the truth was put together.
        line = [item.id, item.image_id, item.question, dict(item.truth)]
        found.update(json.dumps(line, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return found.hexdigest()


def check_name(name: str) -> Name:
    """Check the name of a benchmark and return it.

    Raises:
        BadBenchmark: the name is not chair, pope or beaf; the message suggests the nearest.
    """
    if name not in NAMES:
        raise BadBenchmark(f"no bench {name!r}: {did_you_mean(name, NAMES)}")
    return name
