"""Read the rows of a workbook (.xlsx), which VLMEvalKit writes unless it is told otherwise. It needs the extra `xlsx`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.errors import MalformedFile, MissingData


def is_workbook(path: Path) -> bool:
    """Return whether the name of a file says that it is a workbook."""
    return path.suffix.lower() == ".xlsx"


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every row of the first sheet by the headings of its first row, with its place ("file, row 3").

    An empty cell is an empty text, since workbooks cannot tell the two apart. Rows without any value are skipped.

    Raises:
        InputError: the file cannot be opened.
        MalformedFile: the file is not a workbook, or its first row does not name every column once.
        MissingData: openpyxl is not installed.
    """
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise MissingData(
            f"{path}: reading .xlsx needs {error.name}; install the extra 'xlsx': pip install -e '.[xlsx]' in the clone, or"
            " let VLMEvalKit write JSON (PRED_FORMAT=json)"
        ) from error
    try:
        with path.open("rb") as file:
            book = load_workbook(file, read_only=True, data_only=True)
            rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
            book.close()
    except OSError as error:
        # Some versions of zipfile report a file that is no archive as an OSError; only the system's own have a number.
        if error.errno is None:
            raise MalformedFile(f"{path}: is not a workbook that can be read ({error})") from error
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    # What is damaged is reported by zipfile, zlib, the XML parser or openpyxl, each with errors of its own.
    except Exception as error:
        what = str(error).strip().split("\n")[0] or type(error).__name__
        raise MalformedFile(f"{path}: is not a workbook that can be read ({what:.100})") from error
    yield from _by_heading(rows, path)


def _by_heading(rows: list[list[Any]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows below the first as objects whose keys are the cells of the first."""
    if not rows:
        return
    headings = ["" if cell is None else str(cell).strip() for cell in rows[0]]
    while headings and not headings[-1]:
        headings.pop()
    if not all(headings) or len(set(headings)) != len(headings):
        raise MalformedFile(f"{path}: the first row must name every column, each with a name of its own")
    for number, row in enumerate(rows[1:], start=2):
        if any(cell is not None for cell in row):
            cells = (row + [None] * len(headings))[: len(headings)]
            yield (
                f"{path}, row {number}",
                {name: _cell(cell) for name, cell in zip(headings, cells, strict=True)},
            )


def _cell(value: Any) -> Any:
    """Return a cell as JSON could hold it: numbers, truth values and texts as they are, dates and the like as texts."""
    if value is None:
        return ""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
