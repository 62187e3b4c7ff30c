"""The table of settings names tests that exist and pass, and says why a setting was not tried."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from support import (
    METHODS,
    QUANTISED,
    RESULT,
    TABLE,
    UNTRIED,
    WORKS,
    Row,
    cell,
    named_tests,
    outcomes,
    packages,
    table,
)

from keepsight import methods

ROOT = Path(__file__).parents[2]
ROWS = [row for rows in TABLE.values() for row in rows]


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("test", sorted(named_tests()))
def test_named_tests_exist_and_are_not_skipped(test: str) -> None:
    path, _, name = test.partition("::")
    found = functions(ROOT / path)
    assert name in found, f"{path} has no {name}"
    marks = [ast.unparse(mark) for mark in found[name].decorator_list]
    assert not any("skip" in mark or "xfail" in mark for mark in marks)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_tests_or_a_reason(row: Row) -> None:
    assert row.note.endswith(".")
    assert bool(row.tests) == (row.all != UNTRIED)
    assert set(row.but) <= set(METHODS)
    assert bool(row.package) == any(test.startswith(QUANTISED) for test in row.tests)


def test_every_method_has_a_column() -> None:
    assert sorted(METHODS) == sorted(methods())


def test_tests_of_other_packages_were_run_and_passed() -> None:
    result = json.loads(RESULT.read_text())
    for test in sorted(named_tests()):
        path, _, name = test.partition("::")
        if path == QUANTISED:
            assert result["tests"][name]["passed"] > 0, name
            assert result["tests"][name]["failed"] == result["tests"][name]["skipped"] == 0, name
    assert {name for row in ROWS for name in packages(row)} <= set(result["versions"])


def test_cells() -> None:
    row = Row("a", WORKS, "b.", ("c::d",), {"vhr": "refused"})
    assert [cell(row, method) for method in ("vcd", "vhr")] == ["yes", "refused"]
    assert cell(Row("a", UNTRIED, "b."), "vcd") == "–"


def test_lines_of_the_table_have_as_many_cells_as_its_head() -> None:
    lines = [line for line in table(json.loads(RESULT.read_text())).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert len(lines) == 2 + len(TABLE) + len(ROWS)


def test_outcomes_are_counted_by_function() -> None:
    report = """<testsuites><testsuite><testcase name="test_a[1]"/><testcase name="test_a[2]"><failure/></testcase>
    <testcase name="test_b"><skipped/></testcase></testsuite></testsuites>"""
    assert outcomes(report) == {
        "test_a": {"passed": 1, "failed": 1, "skipped": 0}, "test_b": {"passed": 0, "failed": 0, "skipped": 1},
    }  # fmt: skip
