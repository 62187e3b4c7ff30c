"""The count of calls per token: what counts as one, and that a run gives the same numbers again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import count_calls
import pytest
from count_calls import counting, measure

from keepsight.eval.chair.tokens import __file__ as counted_file


def twice() -> Iterator[int]:
    yield 1
    yield 2


def in_package(code: str) -> None:
    exec(compile(code, str(Path(counted_file)), "exec"), {})


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("1 + 1", 1),  # the code itself
        ("def f(): pass\nf(); f()", 3),
        ("[x for x in range(3)]\n{x for x in range(3)}\n{x: x for x in range(3)}", 1),
        ("def g():\n yield 1\n yield 2\nlist(g())", 4),  # the first call and two resumptions
    ],
)
def test_what_counts_as_a_call(code: str, calls: int) -> None:
    with counting() as count:
        in_package(code)
    assert count() == calls


def test_code_of_other_files_does_not_count() -> None:
    with counting() as count:
        assert list(twice()) == [1, 2]
    assert count() == 0


def test_the_demo_model_is_counted_plain_fused_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_calls, "SHORT", 4)
    monkeypatch.setattr(count_calls, "LONG", 8)
    rows, again = measure(["vcd"], repeats=1), measure(["vcd"], repeats=1)
    assert [(row["method"], row["fused"]) for row in rows] == [("", None), ("vcd", True), ("vcd", False)]
    plain, fused, apart = (row["calls_per_token"] for row in rows)
    assert plain == 0
    assert fused > 0
    assert apart > 0
    assert [row["calls_per_token"] for row in again] == [plain, fused, apart]
