"""Grounding: how much the picture supports what a model wrote. No annotation is needed.

Every generated token has two probabilities, one given the picture and one given the same prompt without it::

    difference       = log p(y | picture, text) - log p(y | text)
    contrast         = log softmax((1 + w) log p(. | picture, text) - w log p(. | text))[y]
    likelihood       = log p(y | picture, text)
    negative_entropy = sum over the vocabulary of p log p, where p = p(. | picture, text)
    divergence       = KL(p(. | picture, text) || p(. | text))

All are in nats, from the plain model's probabilities, and high where the picture supports a word. ``difference`` is the
pointwise mutual information of token and picture; ``contrast`` is the log-probability of the token under the distribution
that M3ID decodes from; ``likelihood`` and ``negative_entropy`` are baselines that need no amateur. How well each of them
detects invented objects is measured in ``docs/grounding.md``.

``ground`` scores a given text with one pass with the picture and one without; ``GroundingRecorder`` records while
``generate`` writes.
"""

from __future__ import annotations

from keepsight.grounding.alignment import BadNoun, CannotTokenize, Nouns
from keepsight.grounding.recorder import GroundingRecorder, NotRecorded
from keepsight.grounding.scores import (
    AGGREGATE,
    AGGREGATES,
    SCORE,
    SCORES,
    THRESHOLD,
    WEIGHT,
    Figures,
    Grounding,
    TokenGrounding,
    WordGrounding,
    figures,
)
from keepsight.grounding.teacher_forcing import ground, teacher_force

__all__ = [
    "AGGREGATE",
    "AGGREGATES",
    "SCORE",
    "SCORES",
    "THRESHOLD",
    "WEIGHT",
    "BadNoun",
    "CannotTokenize",
    "Figures",
    "Grounding",
    "GroundingRecorder",
    "NotRecorded",
    "Nouns",
    "TokenGrounding",
    "WordGrounding",
    "figures",
    "ground",
    "teacher_force",
]
