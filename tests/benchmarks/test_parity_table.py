from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parity import __main__ as table
from parity._row import Row, same, tally

FOLDER = Path(__file__).parents[1] / "parity"


def test_pairs_are_counted_and_the_first_that_differ_shown(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [("a", 1, 1), ("b", (1, 2.0), [1, 2 + 1e-14]), ("c", [1], [2]), ("d", "x", None)]
    assert tally("f.json", "figures", pairs) == Row("f.json", "figures", 4, 2)
    assert capsys.readouterr().err.count("f.json, figures: ") == 2
    assert not same([1], [1, 2])
    assert not same(0.5, None)
    assert not same(1e-11, 0)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([Row("a", "x", 3, 0), Row("a", "y", 2, 0), Row("b", "x", 1, 0)], 0),
        ([Row("a", "x", 3, 0), Row("b", "x", 2, 1)], 1),
        ([], 1),
    ],
)
def test_exit_code_and_sum(rows: list[Row], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.show(rows) == code
    last = capsys.readouterr().out.splitlines()[-1].split()
    counted = [
        len({row.file for row in rows}),
        sum(row.compared for row in rows),
        sum(row.differing for row in rows),
    ]
    assert [int(word) for word in last if word.isdigit()] == counted


def test_every_module_is_found_and_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "chair" in table.modules()
    assert not [name for name in table.modules() if name.startswith("_")]

    def none(shared: Path, names: list[str]) -> Iterator[Row]:
        assert names == table.modules()
        yield Row("a", "x", 1, 0)

    (tmp_path / "data" / "parity").mkdir(parents=True)
    monkeypatch.setattr(table, "rows", none)
    assert table.main([str(tmp_path)]) == 0


def test_it_runs_as_a_folder_and_says_in_one_line_that_there_are_no_data(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, FOLDER, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no reference data")
    assert done.stderr.count("\n") == 1
