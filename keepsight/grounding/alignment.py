"""The text side of grounding: which tokens an answer consists of, and which of them write a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keepsight.errors import InputError
from keepsight.inference.detokenizer import shared_prefix

Span = tuple[int, int]


class CannotTokenize(InputError):
    """The tokens of a text do not decode to that text, so that its words cannot be found among them."""


class BadNoun(InputError):
    """A word list holds something that is not a word, or nothing."""


class Found(NamedTuple):
    """A word of a text: as it is written, the object that it names, and the first letter and the one after the last."""

    word: str
    object: str
    span: Span


@dataclass(frozen=True)
class Nouns:
    """Words to look for: each one's normal form, as a tuple of its parts, to what it is called.

    Made by ``Nouns.of``. Words are compared as CHAIR's pattern family normalises them, so that case and plural do not
    matter, and of two that fit at one place the longer is taken.
    """

    names: Mapping[tuple[str, ...], str]

    @classmethod
    def of(cls, nouns: Iterable[str]) -> Nouns:
        """From nouns of any number of parts, such as ``fire truck``. Each is called what it was written as.

        Raises:
            BadNoun: there is none, or one is not made of letters, digits, hyphens and apostrophes.
        """
        names: dict[tuple[str, ...], str] = {}
        for noun in (noun.strip() for noun in nouns):
            if noun and not re.fullmatch(r"\w[\w'’ -]*", noun):
                raise BadNoun(f"{noun!r} is no noun: write words of letters, such as dog or fire truck")
            if noun:
                names.setdefault(tuple(part for part, _ in _parts(noun)), noun)
        if not names:
            raise BadNoun("the list of nouns is empty: name at least one, such as dog")
        return cls(names)

    def find(self, text: str) -> tuple[Found, ...]:
        """Every noun in ``text``, in order, repeats included; none overlaps another."""
        parts = _parts(text)
        longest = max(map(len, self.names))
        found: list[Found] = []
        at = 0
        while at < len(parts):
            for count in range(min(longest, len(parts) - at), 0, -1):
                here = parts[at : at + count]
                name = self.names.get(tuple(part for part, _ in here))
                if name is not None:
                    span = (here[0][1][0], here[-1][1][1])
                    found.append(Found(text[slice(*span)], name, span))
                    break
            else:
                count = 1
            at += count
        return tuple(found)


def object_words(text: str, nouns: Nouns | None = None) -> tuple[Found, ...]:
    """The words to score: COCO's objects as CHAIR finds them, or the nouns of a list.

    >>> object_words("Two dogs.")
    (Found(word='dogs', object='dog', span=(4, 8)),)
    """
    if nouns is not None:
        return nouns.find(text)
    from keepsight.eval.chair.score import mentions

    return tuple(Found(text[slice(*one.span)], one.object, one.span) for one in mentions(text))


def token_letters(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of some tokens, without white space around it, and which of its letters each of them writes.

    Tokens are decoded one after another in their context, since what a token writes depends on those before it; this fits
    sentencepiece (whose first space is dropped) and byte-level BPE (whose letters may be spread over several tokens)
    alike. A letter of several tokens belongs to all of them. A special token writes nothing.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    kept = text.strip()
    before = len(text) - len(text.lstrip())
    special = set(tokenizer.all_special_ids)
    spans: list[Span] = []
    done = 0
    for count, token in enumerate(ids, 1):
        so_far = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        agreed = max(done, shared_prefix(so_far, text))
        # Where the texts differ, this token began a letter that a later token completes
        begun = token not in special and len(so_far) > agreed
        spans.append(_within(done - before, agreed + begun - before, len(kept)))
        done = agreed
    return kept, spans


def _within(start: int, end: int, length: int) -> Span:
    return min(max(start, 0), length), min(max(end, 0), length)


def word_tokens(spans: Sequence[Span], word: Span) -> tuple[int, ...]:
    """The numbers of the tokens that write a letter of a word."""
    start, end = word
    return tuple(at for at, (first, last) in enumerate(spans) if max(first, start) < min(last, end))


def answer_ids(processor: Any, prompt: str, answer: str, *, raw: bool = False) -> list[int]:
    """The tokens of ``answer`` as they follow the prompt, without an end mark.

    What stands between prompt and answer is what the chat template writes there. Where there is no template (``raw``), or
    its finished answers do not continue its prompts, it is one space, or nothing if either side has white space already.
    Prompt and answer are tokenized together, and apart where a token would reach over the seam.

    Raises:
        InputError: the answer is empty.
        CannotTokenize: the tokens do not spell the answer.
    """
    wanted = answer.strip()
    if not wanted:
        raise InputError("the caption to ground is empty: give a text")
    tokenizer = processor.tokenizer
    before, tail = prompt, None
    if not raw:
        before, tail = _by_template(processor, prompt, wanted)
    if tail is None:
        tail = answer.rstrip() if raw else wanted
        if before and not before[-1:].isspace() and not tail[:1].isspace():
            tail = " " + tail
    alone, both, *apart = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in (before, before + tail, tail, tail.lstrip())
    )
    if both[: len(alone)] == alone:
        ids = both[len(alone) :]
    else:  # of itself sentencepiece writes a space before a text, byte-level BPE does not
        ids = next(
            (ids for ids in apart if tokenizer.decode(alone + ids) == tokenizer.decode(both)), apart[0]
        )
    spelt = tokenizer.decode(ids, skip_special_tokens=True)
    if _bare(spelt) != _bare(wanted):
        raise CannotTokenize(
            f"{type(tokenizer).__name__} reads the caption as {spelt.strip()!r}: leave out what it cannot write"
        )
    return [int(token) for token in ids]


def _by_template(processor: Any, prompt: str, answer: str) -> tuple[str, str | None]:
    """The prompt, and the answer with what the template writes before it; None where that cannot be told."""
    from jinja2 import TemplateError

    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    said = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    before = processor.apply_chat_template(asked, add_generation_prompt=True)
    try:
        whole = processor.apply_chat_template(said)
    except TemplateError:  # a template need not know finished answers
        return before, None
    at = whole.find(answer, len(before)) if whole.startswith(before) else -1
    return before, whole[len(before) : at + len(answer)] if at >= 0 else None


def _bare(text: str) -> str:
    """A text without what tokenizers are free to change: white space, case, forms of one letter."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _parts(text: str) -> list[tuple[str, Span]]:
    from keepsight.eval.chair.score import words
    from keepsight.eval.chair.vocabulary import Vocabulary

    return [(word.text, word.span) for word in words(text, vocabulary=Vocabulary({}))]
