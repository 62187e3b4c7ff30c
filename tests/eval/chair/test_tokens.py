from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from keepsight.eval.chair.tokens import split_sentences, tokenize

# What the tokenizer's expressions react to, to be thrown together at random.
_WORDS = """the dog cat. e.g. mr. st. u.s. 12. 5. a. " ' '' `` ` . .. ... ? ! ?! ) ( [ ] , : ; -- - — ’ “ ” » « „ ‘ cannot
gonna wanna 'tis d'ye dog's dogs' n't don't 'll 12:30 1,000 $3.5 #1 & * **bus** <b> x/y é café 🐶 ...the dog." (dog.)
said: etc. no. table.chair p.m. a.m 'cause more'n lemme { } @ % i.e. vs. jr. conn."""
PIECES = [*_WORDS.split(), "\n", "\t", "\n\n", "\u00a0"]
SPACES = [*[" "] * 12, "\n", "\t", "  ", "\u00a0", "\u2003", "\u3000", "\u202f", "\x1c", "\x85", "\u200b"]


def texts_of(tokens: list) -> list[str]:
    return [token.text for token in tokens]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a table. a chair.", ["a", "table", ".", "a", "chair", "."]),
        ("mr. smith's dog.", ["mr.", "smith", "'s", "dog", "."]),
        ("it is 12:30. the clock", ["it", "is", "12:30.", "the", "clock"]),
        (
            'a sign that says "stop." the car',
            ["a", "sign", "that", "says", "``", "stop", ".", "''", "the", "car"],
        ),
        ("i can't. cannot!", ["i", "ca", "n't", ".", "can", "not", "!"]),
        ("(a dog)...", ["(", "a", "dog", ")", "..."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_and_marks(text: str, expected: list[str]) -> None:
    assert texts_of(tokenize(text)) == expected


def test_sentences_do_not_end_at_abbreviations_numbers_or_initials() -> None:
    text = "the corner of curry st. and main. at no. 5. is a dog! right"
    assert [text[start:end] for start, end in split_sentences(text)] == [
        "the corner of curry st. and main.",
        "at no.",
        "5. is a dog!",
        "right",
    ]


def test_spans_are_in_order_and_hold_their_words() -> None:
    random.seed(1)
    for _ in range(300):
        text = "".join(random.choice(PIECES) + random.choice([" ", " ", ""]) for _ in range(10))
        at = 0
        for token in tokenize(text):
            assert at <= token.start < token.end <= len(text)
            assert not text[at : token.start].strip(), text
            held = text[token.start : token.end]
            assert held == token.text or (held in ('"', "''") and token.text in ("``", "''")), text
            at = token.end
        assert not text[at:].strip(), text


def test_equal_to_nltk_on_random_text(nltk_data: Path) -> None:
    from nltk.tokenize import word_tokenize

    random.seed(2)
    for _ in range(1500):
        text = "".join(
            random.choice(PIECES) + random.choice([" ", " ", ""]) for _ in range(random.randint(1, 14))
        )
        assert texts_of(tokenize(text)) == word_tokenize(text), text


@pytest.mark.parametrize(
    "text",
    [
        "a table.\u00a0dog. a cat",
        "a table.\u3000dog. a cat",
        "a dog's'\u00a0cat",
        "i'm'\u00a0a cat",
        "they're\x1cdog.",
        "the table.\x1cdog",
    ],
)
def test_equal_to_nltk_beside_rare_spaces(text: str, nltk_data: Path) -> None:
    from nltk.tokenize import word_tokenize

    assert texts_of(tokenize(text)) == word_tokenize(text)


def test_equal_to_nltk_with_rare_spaces_on_random_text(nltk_data: Path) -> None:
    from nltk.tokenize import word_tokenize

    random.seed(3)
    for _ in range(3000):
        text = "".join(random.choice(_WORDS.split()) + random.choice(SPACES) for _ in range(7))
        assert texts_of(tokenize(text)) == word_tokenize(text), text


def test_equal_to_nltk_on_captions(shared: Path, nltk_data: Path) -> None:
    from nltk.tokenize import word_tokenize

    for path in sorted((shared / "data" / "parity" / "chair" / "captions").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines()[::11]:
            text = json.loads(line)["caption"].lower()
            assert texts_of(tokenize(text)) == word_tokenize(text), text
