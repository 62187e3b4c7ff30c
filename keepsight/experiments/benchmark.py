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
"""What a CHAIR benchmark asks about every picture."""
USER = "user"
"""The split of a benchmark that is made of the user's files."""


@dataclass(frozen=True, kw_only=True)
class ItemRecord:
    """One question about one picture, without the picture, as the folder of a run keeps it.

    Args:
        id: unique within the bench.
        image_id: the picture; several questions may share it.
        question: what the model is asked.
        truth: chair ``{"objects": [names] or None}``, None where the objects are not known; pope ``{"label": "yes" or "no",
            "split": "random", "popular", "adversarial" or a file's name, "object": name or None}``; beaf, as in the official
            file, ``{"label", "image": file name, "orig_img": bool, "removed_q": bool}``.
    """

    id: str
    image_id: ImageId
    question: str
    truth: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "image_id": self.image_id,
            "question": self.question,
            "truth": dict(self.truth),
        }


@dataclass(frozen=True, kw_only=True)
class Item(ItemRecord):
    """A question with its picture, opened on demand: RGB, the same pixels on every call."""

    picture: Callable[[], Image] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions about pictures in a fixed order, questions about one picture side by side.

    Args:
        name: which scorer the answers are for.
        split: of the demo world, or ``user``.
        source: where it comes from, for people.
        items: at least one.
        family: the CHAIR family in which reference captions were read for ``truth``; None where none were.

    Raises:
        BadBenchmark: no items, or an id that occurs twice.
    """

    name: Name
    split: str
    source: str
    items: tuple[Item, ...]
    family: str | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise BadBenchmark(f"the {self.name} bench from {self.source} asks nothing")
        twice = [one for one, times in Counter(item.id for item in self.items).items() if times > 1]
        if twice:
            raise BadBenchmark(
                f"the {self.name} bench from {self.source} holds question {twice[0]!r} twice: keep one"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, pictures' ids, questions and truths, in order; the pixels are not in it."""
        return digest(self.items)

    def head(self) -> dict[str, Any]:
        """What a manifest records of the benchmark."""
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "family": self.family,
            "n": len(self.items),
            "digest": self.digest,
        }


def digest(items: Iterable[ItemRecord]) -> str:
    """SHA-256 over ids, pictures' ids, questions and truths, in their order."""
    found = hashlib.sha256()
    for item in items:
        line = [item.id, item.image_id, item.question, dict(item.truth)]
        found.update(json.dumps(line, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return found.hexdigest()


def check_name(name: str) -> Name:
    """``name`` itself. Raises ``BadBenchmark`` with the nearest for any other than chair, pope and beaf."""
    if name not in NAMES:
        raise BadBenchmark(f"no bench {name!r}: {did_you_mean(name, NAMES)}")
    return name
