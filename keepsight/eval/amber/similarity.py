"""Similarities of words, by which AMBER accepts nouns that are in none of its own lists of words."""

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
"""AMBER's threshold: two words are similar if the cosine of their vectors is greater than this."""


class UnknownSimilarity(InputError):
    """No word similarity has this name."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """A similarity of words.

    Attributes:
        name: the name that reports record, such as "exact".
        first: takes a word and a list of words; returns the place of the first word in the list that is similar to the
            word, or None.
    """

    name: str
    first: Callable[[str, Sequence[str]], int | None]


def similarity(name: str) -> Similarity:
    """Return the similarity of this name.

    - `exact` accepts equal words and needs no data.
    - `spacy:MODEL` accepts words whose vectors in a spaCy model have a cosine greater than 0.8. AMBER's script uses
      `en_core_web_lg`; other models give other scores.

    spaCy processes each word once and compares each pair once; the official script does so at every occurrence.

    Raises:
        UnknownSimilarity: no similarity has this name.
        MissingData: spaCy, the model or its vectors are not installed.
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
    """Return the place of a word in a list, or None."""
    return words.index(word) if word in words else None


def _spacy(model: str) -> Callable[[str, str], bool]:
    """Return a function that says whether two words are similar by the vectors of a spaCy model."""
    # spaCy is no dependency of Keepsight and is imported only where it was asked for.
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
    # Without vectors (models in _sm) spaCy would compare something else with nothing but a warning.
    if not nlp.vocab.vectors_length:
        raise MissingData(
            f"the spaCy model {model!r} has no word vectors; AMBER's is en_core_web_lg, others end in _md or _lg"
        )

    # The same words come up in many descriptions, so that spaCy processes each of them only once.
    @cache
    def read(word: str) -> Any:
        return nlp(word)

    @lru_cache(maxsize=1 << 20)
    def alike(a: str, b: str) -> bool:
        with warnings.catch_warnings():
            # spaCy warns about a word without a vector. It is similar to no word, which is all that matters here.
            warnings.simplefilter("ignore", UserWarning)
            return bool(read(a).similarity(read(b)) > ABOVE)

    return alike
