"""The pieces of an answer are the answer: nothing is taken back, stop texts and half letters never get out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepsight.inference.detokenizer import BROKEN, IncrementalDetokenizer

END = 0


class Bytes:
    """A tokenizer of bytes; 0 ends and writes nothing."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(token for token in ids if token).decode(errors="replace")


def written(
    text: str | bytes, *, stop: tuple[str, ...] = (), longest: int = 1000
) -> tuple[list[str], IncrementalDetokenizer]:
    content = text.encode() if isinstance(text, str) else text
    writer = IncrementalDetokenizer(Bytes(), ends={END}, stop=stop, longest=longest)
    pieces = []
    for token in [*content, END]:
        pieces.append(writer.add(token))
        if writer.finish:
            break
    assert "".join(token.text for piece in pieces for token in piece.tokens).replace(BROKEN, "") in (
        text if isinstance(text, str) else text.decode(errors="replace")
    )
    return [piece.text for piece in pieces], writer


def test_text_comes_as_soon_as_it_will_stay() -> None:
    pieces, writer = written("  a  cat \n")
    assert pieces == ["", "", "a", "", "", "  c", "a", "t", "", "", ""]
    assert (writer.finish, writer.text) == ("stop", "a  cat")


def test_half_letters_wait() -> None:
    pieces, _ = written("aéz")
    assert pieces == ["a", "", "é", "z", ""]


def test_letters_that_never_end_are_told_at_the_end() -> None:
    pieces, _ = written(b"a\xc3")
    assert pieces == ["a", "", BROKEN]


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        (("cat",), "a", "stop"),
        (("cat and", "ca"), "a", "stop"),
        (("cat and d",), "a", "stop"),
        (("\n",), "a cat and dog", "stop"),
        (("dogs",), "a cat and dog", "stop"),
        (("a",), "", "stop"),
    ],
)
def test_stop_texts(stop: tuple[str, ...], text: str, finish: str) -> None:
    pieces, writer = written("a cat and dog", stop=stop)
    assert ("".join(pieces), writer.finish, writer.text) == (text, finish, text)


def test_the_beginning_of_a_stop_text_is_held_back_and_let_go() -> None:
    pieces, _ = written("a cab", stop=("cat",))
    assert pieces == ["a", "", "", "", " cab", ""]


def test_the_longest_answer_ends_by_length() -> None:
    pieces, writer = written("abc", longest=2)
    assert (pieces, writer.finish, writer.ids) == (["a", "b"], "length", [97, 98])


def test_tokens_of_a_stop_text_are_not_told() -> None:
    writer = IncrementalDetokenizer(Bytes(), ends={END}, stop=("XY",), longest=9)
    told = [token for byte in b"abXY" for token in writer.add(byte, logprob=-1.0, top=[(98, -1.0)]).tokens]
    assert [(token.text, token.span) for token in told] == [("a", (0, 1)), ("b", (1, 2))]
    assert told[1].top == (("b", -1.0),)


class Words:
    """A tokenizer of words; 0 ends and writes nothing."""

    known = ("", "an", " office", " with", " ")

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.known[one] for one in ids)


@pytest.mark.parametrize(
    ("stop", "longest", "text", "spans"),
    [
        (("fice w",), 9, "an of", [(0, 2), (2, 5)]),
        (("ith",), 9, "an office w", [(0, 2), (2, 9), (9, 11)]),
        ((), 4, "an office with", [(0, 2), (2, 9), (9, 14)]),
    ],
)
def test_spans_end_where_the_answer_does(
    stop: tuple[str, ...], longest: int, text: str, spans: list[tuple[int, int]]
) -> None:
    writer = IncrementalDetokenizer(Words(), ends={END}, stop=stop, longest=longest)
    told = []
    for word in (1, 2, 3, 4):
        told += writer.add(word).tokens
        if writer.finish:
            break
    assert writer.text == text
    assert [token.span for token in told] == spans
    assert "".join(token.text for token in told).startswith(text)


@settings(max_examples=150, deadline=None)
@given(st.text("ab \né🐕", max_size=12), st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=2))
def test_pieces_are_the_answer_up_to_the_stop(text: str, stop: list[str]) -> None:
    pieces, writer = written(text, stop=tuple(stop))
    body = text.lstrip()
    # Text arrives letter by letter, and the first stop text that is complete ends it
    ends = [(body.find(one) + len(one), body.find(one)) for one in stop if one in body]
    cut = body
    if ends:
        first = min(end for end, _ in ends)
        cut = body[: min(at for end, at in ends if end == first)]
    if not any(
        one.isspace() for one in stop
    ):  # white space at the end of a text may be a stop text, or nothing
        assert "".join(pieces) == cut.rstrip()
    assert "".join(pieces) == writer.text
    assert not any(one in writer.text for one in stop)
