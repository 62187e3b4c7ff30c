"""A bench: what is asked about which picture, and what is true; the demo world's own or the user's files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sightline.errors import did_you_mean
from sightline.eval.images import ImageId
from sightline.runs.errors import BadBench

if TYPE_CHECKING:
    from PIL.Image import Image

Name = Literal["chair", "pope", "beaf"]
NAMES: tuple[Name, ...] = get_args(Name)
DESCRIBE = "Describe this image."
"""What a CHAIR bench asks about every picture."""
USER = "user"
"""The split of a bench that is not the demo world's."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question about one picture, as a run's folder keeps it.

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
class Item(Asked):
    """A question with its picture, opened on demand: RGB, the same pixels on every call."""

    picture: Callable[[], Image] = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Questions about pictures in a fixed order, questions about one picture side by side.

    Args:
        name: which scorer the answers are for.
        split: of the demo world, or ``user``.
        source: where it comes from, for people.
        items: at least one.
        family: the CHAIR family in which reference captions were read for ``truth``; None where none were.

    Raises:
        BadBench: no items, or an id that occurs twice.
    """

    name: Name
    split: str
    source: str
    items: tuple[Item, ...]
    family: str | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise BadBench(f"the {self.name} bench from {self.source} asks nothing")
        twice = [one for one, times in Counter(item.id for item in self.items).items() if times > 1]
        if twice:
            raise BadBench(
                f"the {self.name} bench from {self.source} holds question {twice[0]!r} twice: keep one"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, pictures' ids, questions and truths, in order; the pixels are not in it."""
        return digest(self.items)

    def head(self) -> dict[str, Any]:
        """What a manifest says of the bench."""
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "family": self.family,
            "n": len(self.items),
            "digest": self.digest,
        }


def digest(items: Iterable[Asked]) -> str:
    """SHA-256 over ids, pictures' ids, questions and truths, in their order."""
    found = hashlib.sha256()
    for item in items:
        line = [item.id, item.image_id, item.question, dict(item.truth)]
        found.update(json.dumps(line, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return found.hexdigest()


def check_name(name: str) -> Name:
    """``name`` itself. Raises ``BadBench`` with the nearest for any other than chair, pope and beaf."""
    if name not in NAMES:
        raise BadBench(f"no bench {name!r}: {did_you_mean(name, NAMES)}")
    return name


def demo_bench(name: str, split: str = "test", n: int = 500, seed: int = 0) -> Bench:
    """A bench over pictures of the demo world.

    - chair: the first ``n`` scenes, "Describe this image.".
    - pope: the first ``n`` scenes that show three objects or more, as in the paper; six questions for each of the kinds
      random, popular and adversarial, as ``world.questions`` makes them. 500 scenes give 3,000 questions of each kind.
    - beaf: the first ``n`` scenes that show two objects or more, and for up to two of their objects the same picture
      without this one object. Every picture of a scene is asked about all objects of the scene and four absent ones.

    Args:
        split: val, val-shifted, test or test-shifted.
        n: scenes, 1 or more.
        seed: of the world, 0 or more: another seed is another set of pictures from the same distribution.

    Raises:
        BadBench: no such bench, or n or seed out of range.
        UnknownSplit: with the nearest name.
    """
    from sightline.demo.compare import check_split
    from sightline.runs import demo_items

    check_name(name)
    check_split(split)
    if n < 1 or seed < 0:
        raise BadBench(f"n={n} must be 1 or more and seed={seed} 0 or more")
    build = {"chair": demo_items.chair, "pope": demo_items.pope, "beaf": demo_items.beaf}[name]
    source = f"the demo world, split {split}, {n} scenes, seed {seed}"
    return Bench(name=check_name(name), split=split, source=source, items=tuple(build(split, n, seed)))


def user_bench(
    name: str,
    *,
    images: Path | None,
    questions: Sequence[Path] = (),
    truth: Sequence[Path] = (),
    family: str | None = None,
    limit: int | None = None,
) -> Bench:
    """A bench over the user's pictures.

    - chair: every picture in the folder ``images``, in the order of their names. ``truth``, where given, says what is in
      them, in any form that ``annotations.load_truth`` reads; without it the answers can be scored later.
    - pope: the questions of ``questions``, one file for each split, as ``eval.questions.read_questions`` reads them. The
      split is the one of random, popular and adversarial that is in the file's name, else that name.
    - beaf: one file of questions, as ``eval.beaf_files.read_questions`` reads it.

    Args:
        images: the folder with the pictures.
        family: the CHAIR family in which reference captions among ``truth`` are read.
        limit: keep the first so many pictures only (beaf: originals), with all questions about them and their edits.

    Raises:
        BadBench: no pictures, a picture that a question names is not there, an option that this bench does not take.
        MalformedFile, EmptyFile: of a file of questions or truth, with the line.
        UnknownImage: ``truth`` does not know a picture.
    """
    from sightline.runs import user_items

    check_name(name)
    if images is None:
        raise BadBench(f"a {name} bench of your own needs the folder with its pictures: --images DIR")
    if not images.is_dir():
        raise BadBench(f"no folder of pictures: {images}")
    if limit is not None and limit < 1:
        raise BadBench(f"limit={limit} must be 1 or more")
    if (name == "chair") == bool(questions):
        raise BadBench(
            "a chair bench asks one question about every picture: leave --questions out"
            if questions
            else f"a {name} bench needs its questions: --questions FILE"
        )
    if truth and name != "chair":
        raise BadBench(f"the questions of a {name} bench hold the truth: leave the annotations out")
    items = (
        user_items.chair(images, truth, family, limit)
        if name == "chair"
        else (user_items.pope if name == "pope" else user_items.beaf)(images, questions, limit)
    )
    source = ", ".join(map(str, [images, *questions, *truth]))
    return Bench(name=check_name(name), split=USER, source=source, items=tuple(items), family=family)
