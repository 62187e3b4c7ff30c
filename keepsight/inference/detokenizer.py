"""``IncrementalDetokenizer``: turns the tokens of an answer into text as they come, without taking any text back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

Finish = Literal["stop", "length"]
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the first bytes of a letter to, while its last bytes belong to a token that is still to come."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer.

    Args:
        id: of the token in the vocabulary.
        text: all letters of the token, also where a stop string ends the answer within them.
        span: the first letter of the answer that it writes, and the one after its last.
        logprob: its log-probability under the methods, before temperature and top-p, in nats; None if nobody asked for it.
        top: the most likely tokens in its place, as text and log-probability, most likely first.
        figures: its grounding, in the order of ``grounding.scores.Figures``.
    """

    id: int
    text: str
    span: tuple[int, int]
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    figures: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by: text that will not change any more, and the tokens that are complete in it."""

    text: str = ""
    tokens: tuple[Token, ...] = ()


class IncrementalDetokenizer:
    """One answer as it grows. The texts of all pieces joined are the answer, without white space around it.

    Text is held back as long as it might be the beginning of a stop string, white space at the end of the answer, or an
    incomplete letter. After each ``add``, ``text`` is everything that was decoded so far, and ``finish`` says how the
    answer ended: ``"stop"`` at an end mark or a stop string, ``"length"`` at the largest number of tokens, None not yet.

    Args:
        tokenizer: of the model.
        ends: ids of the tokens that end an answer.
        stop: stop strings; the answer ends before the first of them.
        longest: the most tokens that an answer may have.
    """

    def __init__(
        self, tokenizer: Any, *, ends: Collection[int], stop: Sequence[str] = (), longest: int
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._stop = tuple(stop)
        self._longest = longest
        self._pending: list[Token] = []
        self._sent = 0
        self.ids: list[int] = []
        self.text = ""
        self.finish: Finish | None = None

    def add(
        self,
        token: int,
        *,
        logprob: float | None = None,
        top: Sequence[tuple[int, float]] = (),
        figures: tuple[float, ...] | None = None,
    ) -> Piece:
        """Takes the next token and gives what can be handed on now; ``finish`` tells whether it was the last token."""
        before = self.ids[-1:]
        self.ids.append(token)
        if token in self._ends:
            return self._end("stop", len(self.text.rstrip()))
        text = self._decode(self.ids).lstrip()
        start = min(shared_prefix(self.text, text), len(self.text))
        self._pending.append(
            Token(
                id=token,
                text=text[start:],
                span=(start, len(text)),
                logprob=logprob,
                top=tuple((self._alone(before, one), value) for one, value in top),
                figures=figures,
            )
        )
        self.text = text
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            return self._end("stop", len(text[: min(cuts)].rstrip()))
        if len(self.ids) >= self._longest:
            return self._end("length", len(text.rstrip()))
        return self._say(self._settled())

    def _end(self, finish: Finish, length: int) -> Piece:
        self.finish = finish
        self.text = self.text[:length]
        self._pending = [
            replace(token, span=(token.span[0], min(token.span[1], length)))
            for token in self._pending
            if token.span[0] < length
        ]
        return self._say(length)

    def _say(self, upto: int) -> Piece:
        """The text up to there, and the tokens that end in it: others may still be cut short by a stop string."""
        if upto <= self._sent and self.finish is None:
            return Piece()
        tokens = tuple(takewhile(lambda token: token.span[1] <= upto, self._pending))
        said = Piece(self.text[self._sent : upto], tokens)
        self._sent, self._pending = max(upto, self._sent), self._pending[len(tokens) :]
        return said

    def _settled(self) -> int:
        """How much of the text cannot be taken back any more."""
        text = self.text
        held = 0
        for stop in self._stop:
            begun = (
                size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
            )
            held = max(held, next(begun, 0))
        return len(text[: len(text) - held].rstrip().rstrip(BROKEN).rstrip())

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _alone(self, before: Sequence[int], token: int) -> str:
        """A token's text after the one before it; an end mark is called by its name."""
        decode = self._tokenizer.decode
        if token in self._ends or not before:
            return str(decode([token])).lstrip()
        first = decode(list(before))
        both = decode([*before, token])
        return str(both[shared_prefix(first, both) :])


def shared_prefix(one: str, other: str) -> int:
    """How many letters two texts share before they differ."""
    if other.startswith(one):  # the usual case, a text that has grown, needs no walk through its letters
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def until_end(ids: Sequence[int], ends: int | Sequence[int] | None) -> list[int]:
    """A generated row up to its first end mark, which is included, and without the padding after it.

    Args:
        ends: the ids of end marks, or None for a model that has none, whose rows are kept whole.
    """
    stops = set(ends) if isinstance(ends, Sequence) else {ends}
    length = next((at for at, token in enumerate(ids, 1) if token in stops), len(ids))
    return list(ids[:length])
