"""Prints what is missing of the packages that Keepsight needs, torch aside, as requirements one a line.

python benchmarks/gpu/missing.py          those that are not installed, or not in a release that will do
python benchmarks/gpu/missing.py --all    all of them
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tomllib

try:
    from packaging.requirements import Requirement
except ImportError:  # pip, which installs what is missing, brings a copy of its own
    from pip._vendor.packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def requirements(*, missing: bool) -> Iterator[str]:
    """The project's requirements that hold on this Python, without torch, which the machine must have.

    Args:
        missing: leave out what is installed already.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    seen = set()
    for text in project["dependencies"]:
        needed = Requirement(text)
        if needed.name == "torch" or text in seen or (needed.marker and not needed.marker.evaluate()):
            continue
        seen.add(text)
        if not (missing and installed(needed)):
            yield text


def installed(needed: Requirement) -> bool:
    """Whether a requirement is met by what is installed."""
    try:
        return bool(needed.specifier.contains(version(needed.name), prereleases=True))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    print("\n".join(requirements(missing="--all" not in sys.argv[1:])))
