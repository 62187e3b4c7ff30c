"""Word similarity: spaCy is asked sparingly, and what is missing is named."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from keepsight.eval.amber.similarity import UnknownSimilarity, similarity
from keepsight.eval.errors import MissingData


class Vectors:
    """What spaCy would give, with one number for a word."""

    def __init__(self, size: int) -> None:
        self.vocab = SimpleNamespace(vectors_length=size)
        self.read: list[str] = []

    def __call__(self, word: str) -> Any:
        self.read.append(word)
        return SimpleNamespace(
            similarity=lambda other: 0.9 if {word, other.word} == {"bus", "coach"} else 0.8, word=word
        )


def test_spacy_is_asked_once_a_word_and_only_above_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = Vectors(300)
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: nlp))
    like = similarity("spacy:en_core_web_lg")
    assert like.name == "spacy:en_core_web_lg"
    for _ in range(3):
        assert like.first("bus", ["car", "coach"]) == 1
        assert like.first("bus", ["car"]) is None  # 0.8 is not more than 0.8
    assert sorted(nlp.read) == ["bus", "car", "coach"]


def test_missing_spacy_model_or_vectors_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise OSError(f"[E050] Can't find model {name}")

    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingData, match=r"pip install spacy.*python -m spacy download en_core_web_lg"):
        similarity("spacy:en_core_web_lg")
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=gone))
    with pytest.raises(MissingData, match="no model 'de_x'; install it with `python -m spacy download de_x`"):
        similarity("spacy:de_x")
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: Vectors(0)))
    with pytest.raises(MissingData, match="has no word vectors"):
        similarity("spacy:en_core_web_sm")
    for name in ("glove", "spacy:", ""):
        with pytest.raises(UnknownSimilarity, match="known: exact, spacy:MODEL"):
            similarity(name)
