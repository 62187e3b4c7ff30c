"""``IncrementalDetokenizer``: turns the tokens of an answer into text as they come, without taking any text back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

Finish = Literal["stop", "length"]
BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode the first bytes of a character to, while its last bytes belong to a token that is still to come."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer.

    Args:
        id: the token's id in the vocabulary.
        text: all characters of the token, also where a stop string ends the answer within them.
        span: where the characters that it writes begin and end in the answer; the end is excluded.
        logprob: its log-probability under the methods, before temperature and top-p, in nats; None if it was not asked for.
        top: the most likely tokens in its place, as text and log-probability, the most likely first.
        figures: its grounding, in the order of ``grounding.scores.Figures``; None if it was not asked for.
    """

    id: int
    text: str
    span: tuple[int, int]
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    figures: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """What an answer has grown by: text that will not change any more, and the tokens that are complete in it.

    Args:
        text: the new characters.
        tokens: the tokens whose last character is among the text handed on so far.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text as they come. All pieces joined are the answer, stripped of white space.

    Text is held back as long as it might be the beginning of a stop string, white space at the end of the answer, or an
    incomplete character. After each ``add``, ``text`` is everything that was decoded so far, and ``finish`` says how the
    answer ended: ``"stop"`` at an end mark or a stop string, ``"length"`` at the largest number of tokens, None if it has
    not ended.

    Args:
        tokenizer: the model's tokenizer.
        ends: ids of the tokens that end an answer.
        stop: stop strings; the answer ends before the first of them.
        longest: the largest number of tokens of an answer.
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
        """Take the next token, and return what can be handed on now; ``finish`` tells whether it was the last token.

        Args:
            token: the id of the next token.
            logprob: its log-probability in nats, which is passed on in ``Token``.
            top: ids and log-probabilities of the most likely tokens in its place, the most likely first.
            figures: its grounding, which is passed on in ``Token``.
        """
        before = self.ids[-1:]
        self.ids.append(token)
        if token in self._ends:
            return self._end("stop", len(self.text.rstrip()))
        # All tokens are decoded anew each time, since a token can change how those before it are
        # written: it may complete a character, or a tokenizer may clean up the space before it.
        text = self._decode(self.ids).lstrip()
        # The token begins where the new text departs from the old one, for
        # example at the incomplete character that it completes.
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
        # The whole text is searched, since a stop string may be spread over
        # several tokens. Of several, the one that begins first counts.
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            return self._end("stop", len(text[: min(cuts)].rstrip()))
        if len(self.ids) >= self._longest:
            return self._end("length", len(text.rstrip()))
        return self._say(self._settled())

    def _end(self, finish: Finish, length: int) -> Piece:
        """End the answer after ``length`` characters, and return what is left to hand on."""
        self.finish = finish
        self.text = self.text[:length]
        # Tokens that a stop string removes as a whole are dropped; the span of one that it cuts ends with the answer.
        self._pending = [
            replace(token, span=(token.span[0], min(token.span[1], length)))
            for token in self._pending
            if token.span[0] < length
        ]
        return self._say(length)

    def _say(self, upto: int) -> Piece:
        """Returns the text up to there, and the tokens that end in it. Other tokens have to wait, since a stop string may
        still cut them short."""
        if upto <= self._sent and self.finish is None:
            return Piece()
        tokens = tuple(takewhile(lambda token: token.span[1] <= upto, self._pending))
        said = Piece(self.text[self._sent : upto], tokens)
        self._sent, self._pending = max(upto, self._sent), self._pending[len(tokens) :]
        return said

    def _settled(self) -> int:
        """Returns how many characters of the text cannot be taken back any more."""
        text = self.text
        held = 0
        for stop in self._stop:
            # Sizes are tried from the longest on: the text may end with several beginnings of one stop string. A whole stop
            # string cannot stand here, as ``add`` would have ended the answer.
            begun = (
                size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
            )
            held = max(held, next(begun, 0))
        # White space may turn out to be the end of the answer, where it is dropped. An incomplete
        # character may be several replacement characters long, and may follow white space.
        return len(text[: len(text) - held].rstrip().rstrip(BROKEN).rstrip())

    def _decode(self, ids: Sequence[int]) -> str:
        """Returns the text of some tokens, without special tokens."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _alone(self, before: Sequence[int], token: int) -> str:
        """Returns a token's text after the one before it; for an end mark that is its name."""
        decode = self._tokenizer.decode
        if token in self._ends or not before:
            return str(decode([token])).lstrip()
        # Sentencepiece drops the space of a token that is decoded alone, so it is decoded behind another one.
        first = decode(list(before))
        both = decode([*before, token])
        return str(both[shared_prefix(first, both) :])


def shared_prefix(one: str, other: str) -> int:
    """Returns the number of characters that two texts share before they differ."""
    # A text that has only grown is the usual case, and needs no loop over its characters.
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def until_end(ids: Sequence[int], ends: int | Sequence[int] | None) -> list[int]:
    """Returns a generated row up to its first end mark, which is included, without the padding after it.

    Args:
        ids: the generated tokens of one row.
        ends: the ids of end marks, or None for a model that has none, whose rows are kept whole.
    """
    # The padding is not looked at: many models pad with their end mark,
    # so that only its first occurrence tells the length.
    stops = set(ends) if isinstance(ends, Sequence) else {ends}
    length = next((at for at, token in enumerate(ids, 1) if token in stops), len(ids))
    return list(ids[:length])
