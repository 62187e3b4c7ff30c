"""Which words mean nearly the same: what AMBER accepts besides its own lists of words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.errors import MissingData

ABOVE = 0.8
"""AMBER's threshold: two words are alike if the cosine of their vectors is more than this."""


class UnknownSimilarity(InputError):
    """No word similarity has this name."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """A word similarity by name; `first(word, words)` is the place of the first of `words` that is like `word`."""

    name: str
    first: Callable[[str, Sequence[str]], int | None]


def similarity(name: str) -> Similarity:
    """The similarity of this name.

    - `exact`: equal words. Needs nothing.
    - `spacy:MODEL`: vectors of a spaCy model, alike above a cosine of 0.8. AMBER's script has `en_core_web_lg`; the
      scores of other models are other scores.

    Cost: spaCy reads each word once and compares each pair once; the official script does so at every occurrence.
    Raises `UnknownSimilarity`, and `MissingData` where spaCy, the model or its vectors are missing.
    """
    if name == "exact":
        return Similarity(name=name, first=_equal)
    kind, _, model = name.partition(":")
    if kind != "spacy" or not model:
        raise UnknownSimilarity(f"no word similarity is called {name!r}; known: exact, spacy:MODEL")
    alike = _spacy(model)

    def first(word: str, words: Sequence[str]) -> int | None:
        return next((at for at, other in enumerate(words) if alike(word, other)), None)

    return Similarity(name=name, first=first)


def _equal(word: str, words: Sequence[str]) -> int | None:
    return words.index(word) if word in words else None


def _spacy(model: str) -> Callable[[str, str], bool]:
    try:
        spacy: Any = import_module("spacy")
    except ImportError as error:
        raise MissingData(
            f"--similarity spacy:{model} needs spaCy and that model; install them with `pip install spacy` and"
            f" `python -m spacy download {model}`, or choose --similarity exact"
        ) from error
    try:
        nlp = spacy.load(model)
    except OSError as error:
        raise MissingData(
            f"spaCy has no model {model!r}; install it with `python -m spacy download {model}`, or choose --similarity"
            " exact"
        ) from error
    if not nlp.vocab.vectors_length:
        raise MissingData(
            f"the spaCy model {model!r} has no word vectors; AMBER's is en_core_web_lg, others end in _md or _lg"
        )

    @cache
    def read(word: str) -> Any:
        return nlp(word)

    @lru_cache(maxsize=1 << 20)
    def alike(a: str, b: str) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # words without a vector are like nothing
            return bool(read(a).similarity(read(b)) > ABOVE)

    return alike
