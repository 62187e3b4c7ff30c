"""Aligns text and tokens for grounding: which tokens an answer consists of, and which of them write a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keepsight.errors import InputError
from keepsight.inference.detokenizer import shared_prefix

Span = tuple[int, int]
"""Where a piece of text begins and ends, in characters; the end is excluded."""


class CannotTokenize(InputError):
    """The tokens of a text do not decode to that text, so that its words cannot be found among them."""


class BadNoun(InputError):
    """A word list is empty, or holds something that is not a word."""


class Found(NamedTuple):
    """A word of a text: the word as it is written, the object that it names, and its span in the text."""

    word: str
    object: str
    span: Span


@dataclass(frozen=True)
class Nouns:
    """Words to look for, made by ``Nouns.of``.

    Words are compared as CHAIR's pattern family normalises them, so that case and plural do not matter. Of two words that
    fit at one place the longer is taken.

    Args:
        names: the normal form of each word, as a tuple of its parts, and the name that is reported for it.
    """

    names: Mapping[tuple[str, ...], str]

    @classmethod
    def of(cls, nouns: Iterable[str]) -> Nouns:
        """Make a word list from nouns of one part or several, such as ``fire truck``. Each keeps its spelling as its name.

        Raises:
            BadNoun: there is no noun, or one is not made of letters, digits, hyphens and apostrophes.
        """
        names: dict[tuple[str, ...], str] = {}
        for noun in (noun.strip() for noun in nouns):
            if noun and not re.fullmatch(r"\w[\w'’ -]*", noun):
                raise BadNoun(f"{noun!r} is no noun: write words of letters, such as dog or fire truck")
            if noun:
                # Two spellings of one word, such as singular and plural, have
                # the same normal form; the first one gives the name.
                names.setdefault(tuple(part for part, _ in _parts(noun)), noun)
        if not names:
            raise BadNoun("the list of nouns is empty: name at least one, such as dog")
        return cls(names)

    def find(self, text: str) -> tuple[Found, ...]:
        """Returns every noun in ``text``, in order, repeats included. No noun overlaps another."""
        parts = _parts(text)
        longest = max(map(len, self.names))
        found: list[Found] = []
        at = 0
        while at < len(parts):
            # The longest noun is tried first, so "fire truck" is not taken
            # for "truck". After a hit the search goes on behind it.
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
    """Returns the words to score: COCO's objects as CHAIR finds them, or the nouns of a list.

    Args:
        text: the text to look through.
        nouns: the words to look for; default: the 80 objects of COCO with CHAIR's synonyms.

    >>> object_words("Two dogs.")
    (Found(word='dogs', object='dog', span=(4, 8)),)
    """
    if nouns is not None:
        return nouns.find(text)
    from keepsight.eval.chair.score import mentions

    return tuple(Found(text[slice(*one.span)], one.object, one.span) for one in mentions(text))


def token_letters(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Returns the text of some tokens, without white space around it, and for each token the span that it writes.

    Tokens are decoded one after another in their context, since what a token writes depends on those before it. This works
    for sentencepiece (whose first space is dropped) and for byte-level BPE (whose characters may be spread over several
    tokens) alike. A character of several tokens belongs to all of them. A special token writes nothing.
    """
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    kept = text.strip()
    before = len(text) - len(text.lstrip())
    special = set(tokenizer.all_special_ids)
    spans: list[Span] = []
    done = 0
    for count, token in enumerate(ids, 1):
        so_far = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        # Offsets of the tokenizer do not do here: they belong to a text that is encoded, and
        # generated tokens need not be those that the tokenizer would encode the same text to.
        agreed = max(done, shared_prefix(so_far, text))
        # Where the texts differ, this token began a character that a later token completes.
        begun = token not in special and len(so_far) > agreed
        # Spans count in the text without its white space, so the number of characters dropped in front is subtracted.
        spans.append(_within(done - before, agreed + begun - before, len(kept)))
        done = agreed
    return kept, spans


def _within(start: int, end: int, length: int) -> Span:
    """Returns a span cut to a text of ``length`` characters."""
    return min(max(start, 0), length), min(max(end, 0), length)


def word_tokens(spans: Sequence[Span], word: Span) -> tuple[int, ...]:
    """Returns the numbers of the tokens that write at least one character of a word.

    Args:
        spans: the span of each token.
        word: the span of the word.
    """
    start, end = word
    return tuple(at for at, (first, last) in enumerate(spans) if max(first, start) < min(last, end))


def answer_ids(processor: Any, prompt: str, answer: str, *, raw: bool = False) -> list[int]:
    """Returns the tokens of ``answer`` as they follow the prompt, without an end mark.

    What stands between prompt and answer is what the chat template writes there. Where there is no template (``raw``), or
    its finished answers do not continue its prompts, it is one space, or nothing if either side has white space already.
    Prompt and answer are tokenized together, and apart where a token would reach over the boundary between them.

    Args:
        processor: the model's processor, with a ``tokenizer``.
        prompt: the question, or with ``raw`` the whole prompt.
        answer: the text to tokenize.
        raw: whether ``prompt`` is taken as it is, without the chat template.

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
        # White space before an answer to a raw prompt is kept: the caller of a raw prompt decides what stands there.
        tail = answer.rstrip() if raw else wanted
        if before and not before[-1:].isspace() and not tail[:1].isspace():
            tail = " " + tail
    # Joined, the texts are tokenized as the model would have read them. If the
    # tokens of the prompt come first unchanged, the rest are the answer's.
    alone, both, *apart = (
        tokenizer(text, add_special_tokens=False).input_ids
        for text in (before, before + tail, tail, tail.lstrip())
    )
    if both[: len(alone)] == alone:
        ids = both[len(alone) :]
    else:
        # A token reaches over the boundary, so the answer is tokenized alone. Sentencepiece adds a space before a
        # text and byte-level BPE does not, so the form is taken which decodes to the joined text.
        ids = next(
            (ids for ids in apart if tokenizer.decode(alone + ids) == tokenizer.decode(both)), apart[0]
        )
    # A tokenizer may drop characters that it does not know, or write them as an
    # unknown token; figures of such tokens would belong to another text.
    spelt = tokenizer.decode(ids, skip_special_tokens=True)
    if _bare(spelt) != _bare(wanted):
        raise CannotTokenize(
            f"{type(tokenizer).__name__} reads the caption as {spelt.strip()!r}: leave out what it cannot write"
        )
    return [int(token) for token in ids]


def _by_template(processor: Any, prompt: str, answer: str) -> tuple[str, str | None]:
    """Returns the prompt, and the answer with what the template writes before it; None where that cannot be told."""
    from jinja2 import TemplateError

    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    said = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    before = processor.apply_chat_template(asked, add_generation_prompt=True)
    try:
        whole = processor.apply_chat_template(said)
    except TemplateError:
        # A template need not know finished answers.
        return before, None
    # The text behind the answer, such as an end mark, is cut off: only the answer's own tokens are scored.
    at = whole.find(answer, len(before)) if whole.startswith(before) else -1
    return before, whole[len(before) : at + len(answer)] if at >= 0 else None


def _bare(text: str) -> str:
    """Returns a text without what tokenizers may change: white space, case, and Unicode forms of one character."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _parts(text: str) -> list[tuple[str, Span]]:
    """Returns the words of a text in CHAIR's normal form, with their spans; an empty vocabulary keeps all of them."""
    from keepsight.eval.chair.score import words
    from keepsight.eval.chair.vocabulary import Vocabulary

    return [(word.text, word.span) for word in words(text, vocabulary=Vocabulary({}))]
