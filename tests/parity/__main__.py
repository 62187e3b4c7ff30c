"""Print the parity table. Exit code 0: all equal; 1: something differs, or nothing was compared; 2: no reference data."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __package__ != "parity":  # run as a folder: the modules are found as a package, as in the tests
    sys.path = [str(HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != HERE)]

from parity._row import Row  # noqa: E402

SHARED = HERE.parent.parent.parent / "shared"
EQUAL, DIFFERS, NO_DATA = 0, 1, 2


def modules() -> list[str]:
    """The names of the modules that compare something."""
    return sorted(found.name for found in pkgutil.iter_modules([str(HERE)]) if not found.name.startswith("_"))


def rows(shared: Path, names: Iterable[str]) -> Iterator[Row]:
    for name in names:
        yield from importlib.import_module(f"parity.{name}").differences(shared)


def show(found: Iterable[Row]) -> int:
    """Print the rows as they come, and the sum. Returns the exit code."""
    compared = differing = 0
    files: set[str] = set()
    last = ""
    print(f"{'file':<62}{'compared':>10}{'differing':>11}  what")
    for row in found:
        files.add(row.file)
        print(
            f"{row.file if row.file != last else '':<62}{row.compared:>10}{row.differing:>11}  {row.what}",
            flush=True,
        )
        last = row.file
        compared += row.compared
        differing += row.differing
    print(f"{f'{len(files)} files':<62}{compared:>10}{differing:>11}")
    return DIFFERS if differing or not compared else EQUAL


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tests/parity", description=__doc__)
    parser.add_argument(
        "shared", nargs="?", type=Path, default=SHARED, help="folder of reference data (default: ../shared)"
    )
    parser.add_argument("--only", action="append", choices=modules(), help="one module; may be repeated")
    chosen = parser.parse_args(arguments)
    if not (chosen.shared / "data" / "parity").is_dir():
        print(
            f"error: no reference data: there is no folder {chosen.shared / 'data' / 'parity'}",
            file=sys.stderr,
        )
        return NO_DATA
    return show(rows(chosen.shared, chosen.only or modules()))


if __name__ == "__main__":
    sys.exit(main())
