"""NLTK's part-of-speech tagger with the same tags at several times the speed.

An averaged perceptron scores each tag of a word by the sum of the weights of some fifteen features. NLTK adds up
dictionaries for every token; here the weights that depend on one word of the context are added up once and kept. The
published weights have three decimals, so that whole thousandths add up exactly, in any order. Where two tags have the same
score, NLTK is asked, because rounding errors of its floats decide there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nltk.tag import PerceptronTagger

Scores = NDArray[np.int64]
# Bounds the memory: texts may hold any number of different words.
_MOST_KEPT = 1 << 16
_LOWEST = np.iinfo(np.int64).min


class Tagger:
    """A tagger that gives the same tags as NLTK's `PerceptronTagger`.

    For each place in the context of a word it keeps the scores of up to 65,536 words, of 0.4 kB each.

    Args:
        tagger: NLTK's tagger with its weights loaded.
    """

    def __init__(self, tagger: PerceptronTagger) -> None:
        self.nltk = tagger
        self.weights: Mapping[str, Mapping[str, float]] = tagger.model.weights
        self.labels: list[str] = sorted(tagger.model.classes)
        self.column = {label: at for at, label in enumerate(self.labels)}
        # Weights of another model may have more decimals, which thousandths cannot hold; NLTK tags then.
        self.exact = all(
            label in self.column and abs(1000 * weight - round(1000 * weight)) < 1e-6
            for weights in self.weights.values()
            for label, weight in weights.items()
        )
        # Scores that were added up before, by what they depend on: the word itself, each of the four words around it (two
        # before, one before, one after, two after), and the two tags before it.
        self.word: dict[str, Scores] = {}
        self.near: list[dict[str, Scores]] = [{}, {}, {}, {}]
        self.tags: dict[tuple[str, str], Scores] = {}

    def tag(self, tokens: Sequence[str]) -> list[str]:
        """Return the Penn Treebank tag of every token."""
        tagger = self.nltk
        if not self.exact:
            return [tag for _, tag in tagger.tag(tokens)]
        context = [*tagger.START, *map(tagger.normalize, tokens), *tagger.END]
        known: Mapping[str, str] = tagger.tagdict
        before, before2 = tagger.START
        found: list[str] = []
        for at, token in enumerate(tokens):
            # NLTK has a table of frequent words whose tag is hardly ever in doubt, and predicts only for the others.
            tag = known.get(token) or self._predict(at, token, context, before, before2)
            found.append(tag)
            before2, before = before, tag
        return found

    def _predict(self, at: int, token: str, context: list[str], before: str, before2: str) -> str:
        """Return the tag of token `at`; `before` and `before2` are the tags of the two tokens before it, nearest first.

        The features are those of `PerceptronTagger._get_features` in NLTK, grouped by what they depend on.
        """
        # `START` puts two entries in front of the context, so that entry `at` belongs to the token two before token `at`.
        two_before, one_before, word, one_after, two_after = context[at : at + 5]
        near2, near1, after1, after2 = self.near
        # The key is the token as written, since its suffix and first letter are features beside its normalised form.
        scores = self.word.get(token)
        if scores is None:
            own = ("bias", f"i suffix {token[-3:]}", f"i pref1 {token[:1]}", f"i word {word}")
            scores = self._keep(self.word, token, own)
        part = near2.get(two_before)
        # This sum makes a new array, so that the sums in place below leave the kept scores unchanged.
        scores = scores + (
            self._keep(near2, two_before, (f"i-2 word {two_before}",)) if part is None else part
        )
        part = near1.get(one_before)
        if part is None:
            part = self._keep(near1, one_before, (f"i-1 word {one_before}", f"i-1 suffix {one_before[-3:]}"))
        scores += part
        part = after1.get(one_after)
        if part is None:
            part = self._keep(after1, one_after, (f"i+1 word {one_after}", f"i+1 suffix {one_after[-3:]}"))
        scores += part
        part = after2.get(two_after)
        scores += self._keep(after2, two_after, (f"i+2 word {two_after}",)) if part is None else part
        part = self.tags.get((before, before2))
        if part is None:
            tags = (f"i-1 tag {before}", f"i-2 tag {before2}", f"i tag+i-2 tag {before} {before2}")
            part = self._keep(self.tags, (before, before2), tags)
        scores += part
        # This feature depends on a tag and a word, so that it is looked up instead of being kept for every pair.
        if (both := self.weights.get(f"i-1 tag+i word {before} {word}")) is not None:
            for label, weight in both.items():
                scores[self.column[label]] += round(1000 * weight)
        # The best score is overwritten to see whether another tag has the same.
        best = int(scores.argmax())
        top = scores[best]
        scores[best] = _LOWEST
        if scores.max() == top:
            features = self.nltk._get_features(at, token, context, before, before2)
            return str(self.nltk.model.predict(features)[0])
        return self.labels[best]

    def _keep(self, kept: dict[Any, Scores], key: object, features: Sequence[str]) -> Scores:
        """Return the sum of the features' weights in thousandths, one for each tag; keep it under `key` if there is room."""
        scores = np.zeros(len(self.labels), dtype=np.int64)
        for feature in features:
            for label, weight in self.weights.get(feature, {}).items():
                scores[self.column[label]] += round(1000 * weight)
        if len(kept) < _MOST_KEPT:
            kept[key] = scores
        return scores
