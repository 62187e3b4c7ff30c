"""Dictionary forms of words in context, as OPERA's CHAIR makes them: NLTK's tagger, then WordNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from sightline.eval.errors import MissingData


def lemmatize(tokens: Sequence[str]) -> list[str]:
    """The dictionary form of every token of a caption, by its part of speech; unknown kinds count as nouns.

    Raises `MissingData` when NLTK's tagger or WordNet is not installed.
    """
    try:
        tag, lemma = _tools()
        return [lemma(word, _PARTS.get(kind[:1], "n")) for word, kind in tag(tokens)]
    except LookupError as error:
        raise MissingData(
            "the wordnet family needs NLTK's tagger and WordNet; install them with "
            "`python -m nltk.downloader averaged_perceptron_tagger_eng wordnet`"
        ) from error


# The first letter of a Penn Treebank tag to WordNet's part of speech.
_PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}


@lru_cache(maxsize=1)
def _tools() -> tuple[Callable[[Sequence[str]], list[tuple[str, str]]], Callable[[str, str], str]]:
    from nltk.stem import WordNetLemmatizer
    from nltk.tag import PerceptronTagger

    tagger, lemmatizer = PerceptronTagger(), WordNetLemmatizer()

    @lru_cache(maxsize=1 << 16)
    def lemma(word: str, part: str) -> str:
        return str(lemmatizer.lemmatize(word, part))

    def tag(tokens: Sequence[str]) -> list[tuple[str, str]]:
        return [(str(word), str(kind)) for word, kind in tagger.tag(tokens)]

    return tag, lemma
