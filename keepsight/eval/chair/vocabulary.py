"""Which words name which objects: the tables in which CHAIR looks words up."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files


# Without `eq=False` the class would compare by its tables and could not be hashed. `cached_property` works on a frozen class
# because it writes into `__dict__` without calling `__setattr__`.
@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words, the objects that they name, and the word pairs that are read as one word.

    Attributes:
        words: maps a word, in the dictionary form that the family makes, to the object that it names. A word of several
            parts is found only if `pairs` makes it.
        pairs: maps neighbouring words (two or more), joined by spaces, to the word that they are read as; where several
            begin at one word, the longest counts. A pair may be read as a word that names nothing, which hides one of
            its parts ("train track" is no train).
        dropped: maps a word to a companion; a caption that names the companion anywhere does not count the word. Both
            are words that name objects.
        name: the name that scores record: "coco", or the name of the file that the vocabulary was read from.
        source_sha256: the SHA-256 of that file in hexadecimal; empty if the vocabulary comes from no file.
    """

    words: Mapping[str, str]
    pairs: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    name: str = "custom"
    source_sha256: str = ""

    @cached_property
    def objects(self) -> frozenset[str]:
        """The names of all objects."""
        return frozenset(self.words.values())

    @cached_property
    def openers(self) -> Mapping[str, tuple[int, ...]]:
        """The words that a pair may begin with, and the numbers of words of such pairs, largest first."""
        lengths: dict[str, set[int]] = {}
        for pair in self.pairs:
            first, *rest = pair.split(" ")
            lengths.setdefault(first, set()).add(1 + len(rest))
        return {first: tuple(sorted(found, reverse=True)) for first, found in lengths.items()}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file that the vocabulary was read from, else of all its entries; equal ones are the same."""
        if self.source_sha256:
            return self.source_sha256
        content = [sorted(table.items()) for table in (self.words, self.pairs, self.dropped)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def hint(self, name: str) -> str:
        """Return the words that end an error about an unknown object: the nearest word, if any is near."""
        near = difflib.get_close_matches(name.lower(), self.words, n=1, cutoff=0.6)
        return f"did you mean {near[0]!r}?" if near else f"it knows {len(self.objects)} objects"

    @classmethod
    def from_lines(
        cls,
        lines: Iterable[str],
        pairs: Mapping[str, str] | None = None,
        dropped: Mapping[str, str] | None = None,
        name: str = "custom",
    ) -> Vocabulary:
        """Make a vocabulary from a table of one object a line: "car, sedan, van" (the first word names the object).

        Empty lines and lines that start with # are skipped.
        """
        words: dict[str, str] = {}
        for line in lines:
            # The official table is split at a comma and one space and its entries are not stripped. Two of its lines hold
            # two spaces, which makes " motor bike" and " cheesecake" of two entries, and no caption can name these.
            entries = line.strip().split(", ")
            if entries[0] and not line.startswith("#"):
                words.update(dict.fromkeys(entries, entries[0]))
        return cls(words, dict(pairs or {}), dict(dropped or {}), name)


def _coco_pairs() -> dict[str, str]:
    """Return CHAIR's word pairs (LisaAnne/Hallucination, utils/chair.py at 6e4d33c, the double words of its constructor)."""
    # "home plate" and "train track" name no object: as pairs they keep the words "plate" and "train" from being counted.
    kept = """motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light,
    fire hydrant,
        stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine
        glass, hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, home
        plate,
        train track"""
    pairs = {pair: pair for pair in (" ".join(entry.split()) for entry in kept.split(","))}
    # A young or grown animal is the animal. Without these pairs "baby" would name a person.
    young = (
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "animal",
        "cub",
    )
    pairs |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in young}
    # Pairs are read after words were made singular, and `pattern` makes "glas" of "glass".
    pairs |= {"passenger jet": "jet", "passenger train": "train", "wine glas": "wine glass"}
    return pairs | {"bow tie": "tie", "toilet seat": "toilet"}


COCO = Vocabulary.from_lines(
    files("keepsight.eval.chair").joinpath("coco_objects.txt").read_text(encoding="utf-8").splitlines(),
    pairs=_coco_pairs(),
    dropped={"seat": "toilet"},
    name="coco",
)
"""The 80 objects of COCO with the words and word pairs of the CHAIR of 2018."""
