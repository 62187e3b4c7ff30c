"""Check the built distributions in a folder against what git tracks: ``python .ci/check_dist.py dist``.

The wheel must hold every tracked file below ``keepsight/`` and, besides its metadata, nothing else. The source distribution
must hold every tracked file of the folders below. What git tracks is the reference, so that a template or a style sheet that
is added later is checked without a list that somebody has to maintain.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_SDIST = ("keepsight", "tests", "training", "benchmarks", "examples", "docs")


def tracked(*folders: str) -> set[str]:
    """The files below some folders of the clone that git tracks, as paths from its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(filter(None, listed.stdout.split("\0")))


def only(folder: Path, pattern: str) -> Path:
    """The one file of a folder that matches a pattern. Exits where there is none, or more than one."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} must hold one {pattern}, not {len(found)}: empty it and build again")
    return found[0]


def in_wheel(path: Path) -> set[str]:
    """The files of a wheel without its metadata."""
    with zipfile.ZipFile(path) as wheel:
        return {name for name in wheel.namelist() if ".dist-info/" not in name}


def in_sdist(path: Path) -> set[str]:
    """The files of a source distribution, without its one folder at the top."""
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1])
    package = tracked("keepsight")
    wheel = in_wheel(only(folder, "keepsight-*.whl"))
    source = in_sdist(only(folder, "keepsight-*.tar.gz"))
    wrong = {
        "missing from the wheel": package - wheel,
        "in the wheel without being a tracked file of the package": wheel - package,
        "missing from the source distribution": tracked(*IN_SDIST) - source,
    }
    for what, files in wrong.items():
        for name in sorted(files):
            print(f"{what}: {name}", file=sys.stderr)
    if any(wrong.values()):
        sys.exit(1)
    print(f"{len(package)} files in the wheel, {len(source)} in the source distribution: as git tracks them")


if __name__ == "__main__":
    main()
