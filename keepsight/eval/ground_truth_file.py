"""Ground truth made once from COCO's files and kept: one small JSON file that says what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from keepsight.errors import InputError
from keepsight.eval.chair.score import check_family
from keepsight.eval.chair.vocabulary import COCO, Vocabulary
from keepsight.eval.image_ids import ImageId


def to_json(
    truth: Mapping[ImageId, Collection[str]],
    *,
    family: str,
    sources: Sequence[str | Path],
    vocabulary: Vocabulary = COCO,
) -> dict[str, Any]:
    """Ground truth as JSON that `annotations.load_truth` reads and, in another family or vocabulary, refuses.

    Returns `{"family", "vocabulary": {"name", "sha256"}, "sources": [{"file", "sha256"}, …], "categories":
    [names], "objects": {image id: [numbers of categories, from 0]}}`. Raises `InputError` when a source cannot
    be read any more.
    """
    check_family(family)
    names = sorted(vocabulary.objects)
    number = {name: at for at, name in enumerate(names)}
    return {
        "family": family,
        "vocabulary": {"name": vocabulary.name, "sha256": vocabulary.sha256},
        "sources": [{"file": Path(path).name, "sha256": _digest(Path(path))} for path in sources],
        "categories": names,
        "objects": {
            str(image): sorted(number[name] for name in truth[image]) for image in sorted(truth, key=_order)
        },
    }


def _order(image: ImageId) -> tuple[bool, int, str]:
    """Numbers by size, then names."""
    return (True, 0, image) if isinstance(image, str) else (False, image, "")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
