"""CHAIR: how many of the objects that captions name are not in the images.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018 (arXiv 1809.02156); official code
LisaAnne/Hallucination, utils/chair.py at 6e4d33c. Two families are in use, and their scores must not be
compared:

- `pattern` makes words singular as the original of 2018 does; POPE's ground truth comes from it.
- `wordnet` tags and lemmatises words with NLTK, as in shikiw/OPERA, chair.py at 61426ef, and its many copies.

`M` stands for the mentions of a caption (repeats count), `O` for the distinct objects among them, and `G` for the
objects of its image:

    chair_s   = captions with a mention outside G / captions
    chair_i   = sum |mentions outside G| / sum |M|
    recall    = sum |O in G| / sum |G|
    precision = sum |O in G| / sum |O|
    f1        = 2 sum |O in G| / (sum |O| + sum |G|)
    length    = mean number of words and punctuation marks, where a word pair counts as one

Lower is better for `chair_s` and `chair_i`; all figures but `length` and `mentions` are fractions in [0, 1]. This module
departs from the official code in three ways: an image without ground truth is an error instead of an image without
objects; a rate with a denominator of zero is None; and `Mention.index` is right after a dropped "seat" (see
`official_indices`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from keepsight.errors import InvalidParameter, did_you_mean
from keepsight.eval.chair.report import METRICS, Mention, PerCaption, Report, divide
from keepsight.eval.chair.singular import singularize
from keepsight.eval.chair.tokens import spans
from keepsight.eval.chair.vocabulary import COCO, Vocabulary
from keepsight.eval.errors import EmptyFile, UnknownFamily, UnknownImage, UnknownObject
from keepsight.eval.image_ids import ImageId, image_id
from keepsight.eval.stats.bootstrap import intervals

__all__ = [
    "COCO",
    "FAMILIES",
    "Mention",
    "PerCaption",
    "Report",
    "Vocabulary",
    "Word",
    "check_family",
    "mentions",
    "official_indices",
    "score",
    "truncate_mentions",
    "words",
]


class Word(NamedTuple):
    """A word of a caption in its dictionary form, or a word pair that is read as one word.

    Attributes:
        text: the dictionary form, or what the pair is read as.
        token: number of the word's first token in the caption, from 0.
        span: the place of the word in the caption as given.
    """

    text: str
    token: int
    span: tuple[int, int]


class CaptionLike(Protocol):
    """What `score` takes: the id of an image and a caption of it. An attribute `where` ("file:line") is quoted in errors."""

    @property
    def image_id(self) -> ImageId: ...
    @property
    def caption(self) -> str: ...


def _singular(tokens: Sequence[str]) -> list[str]:
    """Return the dictionary forms of the family `pattern`."""
    return [singularize(token) for token in tokens]


def _lemmas(tokens: Sequence[str]) -> list[str]:
    """Return the dictionary forms of the family `wordnet`."""
    # The import waits, because the family `pattern` works without NLTK's tagger and WordNet.
    from keepsight.eval.chair.wordnet import lemmatize

    return lemmatize(tokens)


# A family is given all tokens of a caption at once, because the tagger of `wordnet` looks at the words around a word.
FAMILIES: Mapping[str, Callable[[Sequence[str]], list[str]]] = {"pattern": _singular, "wordnet": _lemmas}
"""How each family brings the lower-cased tokens of a caption to their dictionary forms."""


def check_family(family: str) -> None:
    """Raise `UnknownFamily` unless CHAIR has a family of this name."""
    if family not in FAMILIES:
        raise UnknownFamily(f"CHAIR has no family {family!r}; {did_you_mean(family, FAMILIES)}")


def words(caption: str, *, family: str = "pattern", vocabulary: Vocabulary = COCO) -> tuple[Word, ...]:
    """Return the words of a caption: lower-cased, in their dictionary forms, and with word pairs joined.

    Raises:
        UnknownFamily: there is no CHAIR family of this name.
        MissingData: the family `wordnet` needs NLTK's data, which are not installed.

    >>> [word.text for word in words("Two men eat hot dogs.")]
    ['two', 'man', 'eat', 'hot dog', '.']
    """
    return tuple(_join(caption, family, vocabulary).words())


def mentions(caption: str, *, family: str = "pattern", vocabulary: Vocabulary = COCO) -> tuple[Mention, ...]:
    """Return the objects that a caption names, in order and with repeats; beside a toilet, "seat" names none.

    Arguments and errors are those of `words`.

    >>> [(m.word, m.object, m.span) for m in mentions("A kitten on a table.")]
    [('kitten', 'cat', (2, 8)), ('table', 'dining table', (14, 19))]
    """
    return _look_up(_join(caption, family, vocabulary), vocabulary)


def official_indices(
    caption: str, *, family: str = "pattern", vocabulary: Vocabulary = COCO
) -> tuple[int, ...]:
    """Return the token index that the official code gives to each of `mentions(caption)`.

    It differs from `Mention.index` only after a "seat" that was dropped because of a toilet: the official code forgets to
    drop the index of the seat, so that every later mention has the index of the mention before it.
    """
    joined = _join(caption, family, vocabulary).words()
    kept = _drop(joined, vocabulary)
    # Like the official code, this pairs the words that were kept with the tokens of all words; `zip` stops with the former.
    return tuple(
        shown.token for shown, word in zip(joined, kept, strict=False) if word.text in vocabulary.words
    )


def truncate_mentions(caption: str, k: int, *, family: str = "pattern", vocabulary: Vocabulary = COCO) -> str:
    """Cut a caption right after its k-th mention: the control for a method that merely says less.

    A caption with fewer than `k` mentions is returned whole; `k = 0` gives the empty text. The result never holds more
    than `k` mentions.

    Raises:
        InvalidParameter: `k` is negative.

    >>> truncate_mentions("A dog on a couch near a lamp and a cat.", 2)
    'A dog on a couch'
    """
    if k < 0:
        raise InvalidParameter(f"k is a number of mentions, 0 or more, not {k}")
    if k == 0:
        return ""
    found = mentions(caption, family=family, vocabulary=vocabulary)
    if len(found) < k:
        return caption
    text = caption[: found[k - 1].span[1]]
    # The cut may remove the toilet that hid a "seat", or change the part of speech of a word. The shorter text may then hold
    # more mentions than the same stretch of the whole caption did, and is cut again.
    while len(found := mentions(text, family=family, vocabulary=vocabulary)) > k:
        text = text[: found[k - 1].span[1]]
    return text


def score(
    captions: Sequence[CaptionLike],
    truth: Mapping[ImageId, Collection[str]],
    *,
    family: str = "pattern",
    vocabulary: Vocabulary = COCO,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Score captions against the objects of their images.

    Args:
        captions: objects with an `image_id` and a `caption`. An image may have several captions, each of which counts.
        truth: the objects of each image, by their names in the vocabulary (see `annotations.load_truth`).
        vocabulary: which words name which objects: COCO's by default, or your own (see `synonyms.read_vocabulary`).
        family: "pattern" or "wordnet"; the ground truth must have been made with the same family.
        resamples: number of bootstrap resamples of the images for the 95 % intervals; 0 gives none.
        seed: seed of the bootstrap.

    Raises:
        EmptyFile: there are no captions.
        UnknownFamily: there is no CHAIR family of this name.
        UnknownImage: an image has no entry in `truth`; an empty entry stands for an image without objects.
        UnknownObject: `truth` names an object that is not in the vocabulary.
        MissingData: the family `wordnet` needs NLTK's data, which are not installed.
    """
    check_family(family)
    if not captions:
        raise EmptyFile("there are no captions to score")
    # Ids are brought to one spelling on both sides, so that 42, "42" and COCO's file name of 42 are the same image.
    known = {image_id(image): frozenset(objects) for image, objects in truth.items()}
    # A misspelt object in the ground truth would make every mention of the real one count as hallucinated.
    _check_truth(known, vocabulary)
    rows = [_judge(entry, _truth_of(entry, known), family, vocabulary) for entry in captions]
    # A figure is a ratio of sums over all captions, as in the official code, and not the mean of the captions' ratios.
    figures = {
        name: divide(sum(map(top, rows)), sum(map(bottom, rows))) for name, (top, bottom) in METRICS.items()
    }
    ci = intervals(rows, resamples=resamples, seed=seed)
    return Report(
        family=family,
        n=len(rows),
        ci=ci,
        captions=tuple(rows),
        resamples=resamples,
        seed=seed,
        vocabulary=vocabulary.name,
        vocabulary_sha256=vocabulary.sha256,
        **figures,
    )


def _truth_of(entry: CaptionLike, known: Mapping[ImageId, frozenset[str]]) -> frozenset[str]:
    """Return the objects of a caption's image, or raise `UnknownImage`."""
    image = image_id(entry.image_id)
    if image in known:
        return known[image]
    where = getattr(entry, "where", None)
    raise UnknownImage(
        f"image {entry.image_id}{f' ({where})' if where else ''} is not in the ground truth; "
        "give the annotations that hold it"
    )


def _judge(entry: CaptionLike, truth: frozenset[str], family: str, vocabulary: Vocabulary) -> PerCaption:
    """Return the part of one caption in the score."""
    spoken = _join(entry.caption, family, vocabulary)
    found = _look_up(spoken, vocabulary)
    named = {mention.object for mention in found}
    return PerCaption(
        image_id=image_id(entry.image_id),
        caption=entry.caption,
        generated=tuple(mention.object for mention in found),
        hallucinated=tuple(mention for mention in found if mention.object not in truth),
        named=len(named),
        correct=len(named & truth),
        expected=len(truth),
        length=len(spoken.texts),
    )


class _Joined(NamedTuple):
    """The words of a caption in columns, so that a `Word` is made only of the few words that name objects.

    Attributes:
        texts: the dictionary form of each word, pairs joined.
        firsts, lasts: the numbers of the first and of the last token of each word.
        starts, ends: the place of each token in the lower-cased caption.
        place: for each letter of the lower-cased caption its place in the caption as given; None if all are the same.
    """

    texts: Sequence[str]
    firsts: Sequence[int]
    lasts: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]
    place: Sequence[int] | None

    def word(self, at: int) -> Word:
        """Return word number `at`."""
        first, last = self.firsts[at], self.lasts[at]
        start, end = self.starts[first], self.ends[last]
        if self.place is not None:
            # `end` is the place after the last letter, which may be none; the last letter has a place in any case.
            start, end = self.place[start], self.place[end - 1] + 1
        return Word(self.texts[at], first, (start, end))

    def words(self) -> list[Word]:
        """Return all words."""
        return [self.word(at) for at in range(len(self.texts))]


def _join(caption: str, family: str, vocabulary: Vocabulary) -> _Joined:
    """Return the words of a caption; pairs are joined from left to right, and no word is part of two pairs."""
    check_family(family)
    lowered = caption.lower()
    tokens, starts, ends = spans(lowered)
    texts = FAMILIES[family](tokens)
    # No letter becomes shorter in lower case, so that equal lengths mean that every letter kept its place.
    place = _places(caption) if len(lowered) != len(caption) else None
    firsts: Sequence[int] = range(len(texts))
    lasts = firsts
    # A caption without a word that a pair may begin with needs no search.
    if not vocabulary.openers.keys().isdisjoint(texts):
        texts, firsts, lasts = _pair(texts, vocabulary)
    return _Joined(texts, firsts, lasts, starts, ends, place)


def _pair(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[list[str], list[int], list[int]]:
    """Return the words with pairs joined, and the numbers of the first and the last token of each."""
    joined: list[str] = []
    firsts: list[int] = []
    lasts: list[int] = []
    at, count, pairs, openers = 0, len(texts), vocabulary.pairs, vocabulary.openers
    while at < count:
        text, last = texts[at], at
        if text in openers:
            for length in openers[text]:  # longest first, so that the longest pair wins
                if at + length <= count and (pair := " ".join(texts[at : at + length])) in pairs:
                    text, last = pairs[pair], at + length - 1
                    break
        joined.append(text)
        firsts.append(at)
        lasts.append(last)
        at = last + 1
    return joined, firsts, lasts


def _places(caption: str) -> list[int]:
    """Return, for every letter of the lower-cased caption, the place in the caption of the letter that it comes from.

    The dotted capital I of Turkish is two characters in lower case, so that the places after it shift.
    """
    return [at for at, letter in enumerate(caption) for _ in letter.lower()]


def _drop(joined: Sequence[Word], vocabulary: Vocabulary) -> Sequence[Word]:
    """Return the words without those whose companion is present.

    The official code drops every "seat" of a caption that names a toilet, however far apart the two stand.
    """
    if not any(word.text in vocabulary.dropped for word in joined):
        return joined
    present = {word.text for word in joined}
    # A companion counts only if it is there, too: a seat without a toilet is a chair.
    left_out = {
        word for word, companion in vocabulary.dropped.items() if word in present and companion in present
    }
    return [word for word in joined if word.text not in left_out]


def _look_up(joined: _Joined, vocabulary: Vocabulary) -> tuple[Mention, ...]:
    """Return the mentions among the words of a caption."""
    names = vocabulary.words
    named = [joined.word(at) for at, text in enumerate(joined.texts) if text in names]
    return tuple(Mention(w.text, names[w.text], w.token, w.span) for w in _drop(named, vocabulary))


def _check_truth(known: Mapping[ImageId, Collection[str]], vocabulary: Vocabulary) -> None:
    """Raise `UnknownObject` if the ground truth names an object that the vocabulary does not hold."""
    for image, objects in known.items():
        if unknown := sorted(set(objects) - vocabulary.objects):
            raise UnknownObject(
                f"the ground truth of image {image} names {unknown[0]!r}, not an object of the vocabulary; "
                + vocabulary.hint(unknown[0])
            )
