from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from keepsight.eval.chair.tagger import Tagger
from keepsight.eval.chair.tokens import tokenize

ODD = [
    "",
    "-",
    "--",
    "1999",
    "12",
    "x-ray",
    "-x",
    "''",
    "``",
    "🐶",
    "ZEBRA",
    "!HYPHEN",
    "-START-",
    "-END-",
    "bias",
    "a b",
    "'",
]


@pytest.fixture(scope="module")
def tagger(nltk_data: Path) -> Tagger:
    from nltk.tag import PerceptronTagger

    return Tagger(PerceptronTagger())


def same(tagger: Tagger, tokens: list[str]) -> bool:
    return tagger.tag(tokens) == [tag for _, tag in tagger.nltk.tag(tokens)]


def test_tags_of_captions_are_nltks(tagger: Tagger, shared: Path) -> None:
    for path in sorted((shared / "data" / "parity" / "chair" / "captions").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[::40]:
            tokens = [token.text for token in tokenize(json.loads(line)["caption"].lower())]
            assert same(tagger, tokens), tokens


def test_tags_of_words_thrown_together_are_nltks(tagger: Tagger) -> None:
    draw = random.Random(3)
    known = sorted({feature.split(" ")[-1] for feature in tagger.weights})
    for _ in range(600):
        tokens = [
            draw.choice(ODD) if draw.random() < 0.2 else draw.choice(known) for _ in range(draw.randrange(12))
        ]
        assert same(tagger, tokens), tokens


def test_ties_are_broken_as_nltk_breaks_them(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without weights every tag has the score 0: the last name of all wins.
    monkeypatch.setattr(tagger.nltk.model, "weights", {})
    empty = Tagger(tagger.nltk)
    assert empty.tag(["qwz"]) == [max(tagger.labels)]
    assert same(empty, ["qwz", "zwq"])


def test_weights_that_are_no_thousandths_are_left_to_nltk(
    tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = {feature: {label: w + 1e-5 for label, w in row.items()} for feature, row in tagger.weights.items()}
    monkeypatch.setattr(tagger.nltk.model, "weights", fine)
    other = Tagger(tagger.nltk)
    assert not other.exact
    assert same(other, ["a", "dog", "runs", "qwz"])
