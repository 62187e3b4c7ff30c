"""Files gone wrong: what readers must refuse by name, or read, but never fall over.

fuzz(read_captions, [b'{"image_id": 1, "caption": "a dog"}'], tmp_path / "said.jsonl", times=2000, seed=1)
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keepsight.errors import KeepsightError

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "a", "1", "NaN", "\x00",
    "\ud83d", "\u2028", "é" * 50, "x" * 3000, [], [[]], [None], [1, "a"], {}, {"a": {}}, {"": None}, "../../etc", "-1", "٣",
]  # fmt: skip
PIECES = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\x1b[31m",
    b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":",
    b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"\\ud800",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"\xf0\x9f\x90\xb6",
]  # fmt: skip


class Outcome(NamedTuple):
    """How many mutated files were read, and how many were refused by name."""

    read: int
    refused: int


def mutations(originals: Sequence[bytes], times: int, seed: int) -> Iterator[bytes]:
    """`times` broken versions of the originals; the same ones for the same seed."""
    draw = random.Random(seed)
    for _ in range(times):
        content = draw.choice(originals)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            content = draw.choice(_WAYS)(content, draw)
        yield content


def fuzz(
    read: Callable[[Path], object],
    originals: Sequence[bytes],
    path: Path,
    *,
    times: int = 1000,
    seed: int = 0,
) -> Outcome:
    """Let `read` read broken files at `path`; only a `KeepsightError` of one line may come out of it."""
    good = bad = 0
    for content in mutations(originals, times, seed):
        path.write_bytes(content)
        try:
            read(path)
            good += 1
        except KeepsightError as error:
            if not str(error).strip():
                raise AssertionError(f"an error without words for {content[:500]!r}") from error
            bad += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} for {content[:500]!r}") from error
    return Outcome(good, bad)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    at = draw.randrange(len(content))
    return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]


def _insert(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.choice(PIECES) + content[at:]


def _delete(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + content[at + draw.randrange(1, 12) :]


def _lines(content: bytes, draw: random.Random) -> bytes:
    """A line twice, gone, or somewhere else."""
    lines = content.split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.randrange(3)):
        lines.insert(draw.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _value(content: bytes, draw: random.Random) -> bytes:
    """Another value somewhere inside the JSON, of the whole file or of one line."""
    try:
        return json.dumps(_changed(json.loads(content), draw)).encode()
    except (ValueError, RecursionError):
        pass
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    try:
        lines[at] = json.dumps(_changed(json.loads(lines[at]), draw)).encode()
    except (ValueError, RecursionError):
        return _flip(content, draw)
    return b"\n".join(lines)


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with one thing in it replaced, renamed, repeated or gone; deeper things as likely as shallow ones."""
    if not value or not isinstance(value, (dict, list)) or draw.random() < 0.15:
        return draw.choice(VALUES)
    where = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    how = draw.random()
    copy = value.copy()
    if how < 0.75:
        copy[where] = _changed(value[where], draw)
    elif how < 0.9:
        del copy[where]
    elif isinstance(copy, dict):
        copy[str(draw.choice(VALUES))] = copy.pop(where)
    else:
        copy.append(copy[where])
    return copy


_WAYS: list[Callable[[bytes, random.Random], bytes]] = [
    _cut,
    _flip,
    _insert,
    _delete,
    _lines,
    _value,
    _value,
    _value,
]
