"""Dictionary forms of words in context, as OPERA's CHAIR makes them with NLTK's tagger and WordNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from keepsight.eval.errors import MissingData


def lemmatize(tokens: Sequence[str]) -> list[str]:
    """Return the dictionary form of every token of a caption by its part of speech; other parts of speech count as nouns.

    Raises:
        MissingData: NLTK's tagger or WordNet is not installed.
    """
    # NLTK raises LookupError for missing data: the tagger at once, WordNet only when the first word is looked up.
    try:
        tag, of = _tools()
        return [of(word, _PARTS.get(kind[:1], "n")) for word, kind in tag(tokens)]
    except LookupError as error:
        raise MissingData(_INSTALL) from error


def lemma(word: str, part: str) -> str:
    """Return the dictionary form of a word as a noun ("n"), verb ("v"), adjective ("a") or adverb ("r").

    Raises:
        MissingData: NLTK's tagger or WordNet is not installed.
    """
    try:
        return _tools()[1](word, part)
    except LookupError as error:
        raise MissingData(_INSTALL) from error


_INSTALL = (
    "the wordnet family needs NLTK's tagger and WordNet; install them with "
    "`python -m nltk.downloader averaged_perceptron_tagger_eng wordnet`"
)


def nouns(text: str) -> list[str]:
    """Return the nouns of a text in the singular, in order, with repeats and letter case kept, as AMBER's script does.

    The nouns are the tokens that NLTK's tagger tags as nouns, in the form that WordNet gives them.

    Raises:
        MissingData: Punkt, the tagger or WordNet is not installed.
    """
    # The text is not lower-cased, so that `chair.tokens` cannot split it: NLTK's own Punkt model looks at capitals.
    try:
        from nltk.tokenize import word_tokenize

        tag, lemma = _tools()
        return [lemma(word, "n") for word, kind in tag(word_tokenize(text)) if kind.startswith("NN")]
    except LookupError as error:
        raise MissingData(
            "AMBER's descriptions need NLTK's Punkt model, tagger and WordNet; install them with "
            "`python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`"
        ) from error


# Maps the first letter of a Penn Treebank tag to WordNet's part of speech.
_PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}


@lru_cache(maxsize=1)
def _tools() -> tuple[Callable[[Sequence[str]], list[tuple[str, str]]], Callable[[str, str], str]]:
    """Return a function that tags tokens and one that brings a word to its dictionary form, made once."""
    # The models are loaded at the first use, since loading takes time and `pattern` needs neither of them. `lru_cache` does
    # not keep a failure, so that data which are installed later are found.
    from nltk.stem import WordNetLemmatizer
    from nltk.tag import PerceptronTagger

    from keepsight.eval.chair.tagger import Tagger

    tagger, lemmatizer = Tagger(PerceptronTagger()), WordNetLemmatizer()

    @lru_cache(maxsize=1 << 16)
    def lemma(word: str, part: str) -> str:
        return str(lemmatizer.lemmatize(word, part))

    def tag(tokens: Sequence[str]) -> list[tuple[str, str]]:
        return list(zip(tokens, tagger.tag(tokens), strict=True))

    return tag, lemma
