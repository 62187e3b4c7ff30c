"""Sentences and words of an English text, with where each word stands in it.

The words are those of `nltk.word_tokenize` (NLTK 3.10.1 and later; before, "there'a" was three) on lower-cased text,
without NLTK's data: sentences come from NLTK's Punkt algorithm fed with nothing but a list of abbreviations, and words
from `NLTKWordTokenizer`, whose result is remembered for every stretch between two spaces.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer


class Token(NamedTuple):
    """A word or mark of a text: `text[start:end]` holds it (double quotes read as `` or '')."""

    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """The words and marks of a lower-cased text, in order.

    >>> [token.text for token in tokenize("the dog's bowl. a cat.")]
    ['the', 'dog', "'s", 'bowl', '.', 'a', 'cat', '.']
    """
    return [Token(*token) for token in zip(*spans(text), strict=True)]


def spans(text: str) -> tuple[list[str], list[int], list[int]]:
    """The words and marks of a lower-cased text, where each begins, and where it ends: `tokenize` in columns."""
    words: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def take(found: tuple[tuple[str, int, int], ...], at: int) -> None:
        for word, a, b in found:
            words.append(word)
            starts.append(at + a)
            ends.append(at + b)

    for start, end in split_sentences(text):
        chunks = [match.span() for match in _CHUNK.finditer(text, start, end)]
        if not chunks:
            continue
        first, last = chunks[-1]
        if _CLOSERS.fullmatch(text, first, last):
            # Where the last stretch is nothing but closing marks, the tokenizer parts the sentence's last period from
            # an earlier stretch, so that the stretches cannot be cut one by one.
            take(_cut(text[start:end], "", ""), start)
            continue
        for at, until in chunks:
            chunk = text[at:until]
            if chunk.isalpha() and chunk.isascii() and chunk not in _PARTED:
                words.append(chunk)
                starts.append(at)
                ends.append(until)
            else:
                before = "" if at == start else text[at - 1]
                after = "" if until == last else text[until]
                take(_cut(chunk, before, after), at)
    return words, starts, ends


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence of a lower-cased text starts and ends.

    >>> text = "a dog at st. mary's. a cat."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ["a dog at st. mary's.", 'a cat.']
    """
    if _RARE_SPACE.search(text):
        return list(_punkt().span_tokenize(text))
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _TERMINATOR.finditer(text):
        word, following = match.groups()
        if following is None or len(word) < 2 or (word in abbreviations() and text[match.end(1)] == "."):
            return list(_punkt().span_tokenize(text))
        if match.end() < len(text):
            spans.append((start, match.end(1) + 1))
            start = match.end()
    end = len(text.rstrip())
    return [*spans, (start, end)] if end > start else spans


@lru_cache(maxsize=1)
def abbreviations() -> frozenset[str]:
    """Words after which a period does not end a sentence (see the file for the source)."""
    lines = (
        files("keepsight.eval.chair").joinpath("abbreviations.txt").read_text(encoding="utf-8").splitlines()
    )
    listed = ",".join(line for line in lines if not line.startswith("#")).split(",")
    return frozenset(word.strip() for word in listed if word.strip())


# White space outside ASCII, such as the no-break space, and the separators \x1c to \x1f. Punkt looks for the word before a
# period behind ASCII white space alone, so that in "table.\u00a0dog. a" the first period ends no sentence.
_RARE_SPACE = re.compile(r"[^\S \t\n\r\f\v]")
_CHUNK = re.compile(r"\S+")
_CLOSERS = re.compile(r"[\])}>\"'»”’]+")
# A period after a plain word and before a plain word (or the end) ends a sentence for Punkt, too, unless the word is an
# abbreviation. Punkt is slow, so that only texts with other periods are given to it.
_TERMINATOR = re.compile(r"(?<![a-z])([a-z]*)[.?!](\s+(?=[\"'(]?[a-z0-9])|\s*\Z)?")


# A plain word, or one before a comma or the sentence's period, needs no tokenizer, unless it is one of those that the
# tokenizer parts ("gonna" is "gon" and "na").
_QUICK = re.compile(r"([a-z]+)([,.])")
_PARTED = frozenset(("cannot", "gimme", "gonna", "gotta", "lemme", "wanna"))


@lru_cache(maxsize=1 << 17)
def _cut(chunk: str, before: str, after: str) -> tuple[tuple[str, int, int], ...]:
    """The tokens of one stretch with their places in it.

    `before` and `after` are the white-space characters beside the stretch, "" at the sentence's ends. They are passed as
    they are, because some of the tokenizer's expressions look for a space and others for any white space: with a
    no-break space in place of the space, "dog's' cat" is cut into other words. What stands beyond is never looked at, so
    that a letter stands in for it.
    """
    if (quick := _QUICK.fullmatch(chunk)) and quick[1] not in _PARTED and (quick[2] == "," or not after):
        middle = len(chunk) - 1
        return (quick[1], 0, middle), (quick[2], middle, len(chunk))
    text = ("x" + before if before else "") + chunk + (after + "x" if after else "")
    words = _word_tokenizer().tokenize(text)
    found: list[tuple[str, int, int]] = []
    at = 0
    for word in words[1 if before else 0 : -1 if after else None]:
        while chunk[at].isspace():
            at += 1
        # Only double quotes are rewritten: `` stands for " or '' that opens, '' for " that closes.
        width = len(word) if chunk.startswith(word, at) else 1 if chunk[at] == '"' else 2
        found.append((word, at, at + width))
        at += width
    return tuple(found)


@lru_cache(maxsize=1)
def _word_tokenizer() -> NLTKWordTokenizer:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=1)
def _punkt() -> PunktSentenceTokenizer:
    # On lower-case text Punkt's statistics of capitals decide the same way almost everywhere (4 words of
    # 20,365 in NLTK's English model differ), so that the abbreviations are all it needs.
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(abbreviations())
    return PunktSentenceTokenizer(parameters)
