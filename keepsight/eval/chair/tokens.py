"""Split an English text into sentences and words, with the place of each word in the text.

The words are those of `nltk.word_tokenize` on lower-cased text (NLTK 3.10.1 and later; before, "there'a" was three words).
NLTK's data are not needed: sentences come from NLTK's Punkt algorithm with a list of abbreviations as its only parameter,
and words from `NLTKWordTokenizer`, whose result is cached for every stretch of text between two white spaces.
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
    """A word or punctuation mark, which stands at `[start:end]` of the text (double quotes are given as `` or '')."""

    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Return the words and punctuation marks of a lower-cased text, in order.

    >>> [token.text for token in tokenize("the dog's bowl. a cat.")]
    ['the', 'dog', "'s", 'bowl', '.', 'a', 'cat', '.']
    """
    return [Token(*token) for token in zip(*spans(text), strict=True)]


def spans(text: str) -> tuple[list[str], list[int], list[int]]:
    """Return what `tokenize` does as three lists: the words and marks, where each begins, and where each ends.

    Scoring calls this function, since it needs a value of its own only for the few words that name objects.
    """
    words: list[str] = []
    starts: list[int] = []
    ends: list[int] = []

    def take(found: tuple[tuple[str, int, int], ...], at: int) -> None:
        """Append tokens whose places are relative to `at`."""
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
            # Where the last stretch is nothing but closing marks, the tokenizer separates the last period of the sentence
            # from an earlier stretch, so that the stretches cannot be tokenized one by one.
            take(_cut(text[start:end], "", ""), start)
            continue
        for at, until in chunks:
            chunk = text[at:until]
            # A stretch that is a plain word is a token as it stands and needs neither the tokenizer nor its cache.
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
    """Return where each sentence of a lower-cased text starts and ends.

    >>> text = "a dog at st. mary's. a cat."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ["a dog at st. mary's.", 'a cat.']
    """
    if _RARE_SPACE.search(text):
        return list(_punkt().span_tokenize(text))
    # A text is split here as long as every mark at which a sentence may end is one that Punkt surely agrees about (see
    # `_TERMINATOR`). A single other mark gives the whole text to Punkt.
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _TERMINATOR.finditer(text):
        word, following = match.groups()
        # A period after a single letter may belong to an initial, and one after no letter to a number or an ellipsis. An
        # abbreviation matters only before a period: "jr?" ends a sentence.
        if following is None or len(word) < 2 or (word in abbreviations() and text[match.end(1)] == "."):
            return list(_punkt().span_tokenize(text))
        if match.end() < len(text):  # the last sentence is added after the loop, with or without a period
            spans.append((start, match.end(1) + 1))
            start = match.end()
    end = len(text.rstrip())
    return [*spans, (start, end)] if end > start else spans


@lru_cache(maxsize=1)
def abbreviations() -> frozenset[str]:
    """Return the words after which a period does not end a sentence; the data file names the source."""
    lines = (
        files("keepsight.eval.chair").joinpath("abbreviations.txt").read_text(encoding="utf-8").splitlines()
    )
    listed = ",".join(line for line in lines if not line.startswith("#")).split(",")
    return frozenset(word.strip() for word in listed if word.strip())


# White space outside ASCII, such as the no-break space, and the separators \x1c to \x1f. Punkt takes only ASCII white space
# for the end of a word, so that in "table.\u00a0dog. a" the first period ends no sentence. `_TERMINATOR` does not know this.
_RARE_SPACE = re.compile(r"[^\S \t\n\r\f\v]")
_CHUNK = re.compile(r"\S+")
_CLOSERS = re.compile(r"[\])}>\"'»”’]+")
# A period between two plain words, or after the last one, ends a sentence for Punkt, too, unless the word before it is an
# abbreviation. Punkt is slow, so that only texts with other periods are given to it. The look-behind keeps the search
# linear: without it, every letter of a long word would be tried as its beginning.
_TERMINATOR = re.compile(r"(?<![a-z])([a-z]*)[.?!](\s+(?=[\"'(]?[a-z0-9])|\s*\Z)?")


# A plain word before a comma or before the last period of a sentence needs no tokenizer, unless it is one of those that
# the tokenizer splits ("gonna" is "gon" and "na").
_QUICK = re.compile(r"([a-z]+)([,.])")
_PARTED = frozenset(("cannot", "gimme", "gonna", "gotta", "lemme", "wanna"))


@lru_cache(maxsize=1 << 17)
def _cut(chunk: str, before: str, after: str) -> tuple[tuple[str, int, int], ...]:
    """Return the tokens of a stretch of text between white spaces, or of a whole sentence, with their places in it.

    `before` and `after` are the white-space characters beside the stretch, or "" at the ends of the sentence. They are
    passed as they are, because some of the tokenizer's expressions look for a space and others for any white space: with a
    no-break space in place of the space, "dog's' cat" is split into other words. The tokenizer never looks at what stands
    beyond, so that a letter represents it.
    """
    if (quick := _QUICK.fullmatch(chunk)) and quick[1] not in _PARTED and (quick[2] == "," or not after):
        middle = len(chunk) - 1
        return (quick[1], 0, middle), (quick[2], middle, len(chunk))
    text = ("x" + before if before else "") + chunk + (after + "x" if after else "")
    words = _word_tokenizer().tokenize(text)
    found: list[tuple[str, int, int]] = []
    at = 0
    for word in words[1 if before else 0 : -1 if after else None]:
        while chunk[at].isspace():  # only a whole sentence holds white space
            at += 1
        # Only double quotes are rewritten: `` stands for " or '' that opens, '' for " that closes.
        width = len(word) if chunk.startswith(word, at) else 1 if chunk[at] == '"' else 2
        found.append((word, at, at + width))
        at += width
    return tuple(found)


@lru_cache(maxsize=1)
def _word_tokenizer() -> NLTKWordTokenizer:
    """Return NLTK's word tokenizer, made once; NLTK is imported only when a caption needs it."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=1)
def _punkt() -> PunktSentenceTokenizer:
    """Return NLTK's sentence tokenizer, made once and without NLTK's data."""
    # On lower-case text the statistics of capitals in NLTK's English model decide in the same way almost everywhere (for
    # all but 4 of 20,365 words), so that Punkt needs nothing but the abbreviations.
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(abbreviations())
    return PunktSentenceTokenizer(parameters)
