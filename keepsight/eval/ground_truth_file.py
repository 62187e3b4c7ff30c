"""Ground truth that is made once from COCO's files and kept in one small JSON file, which records what it was made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from keepsight.eval.chair.score import check_family
from keepsight.eval.chair.vocabulary import COCO, Vocabulary
from keepsight.eval.image_ids import ImageId
from keepsight.files import file_digest


def to_json(
    truth: Mapping[ImageId, Collection[str]],
    *,
    family: str,
    sources: Sequence[str | Path],
    vocabulary: Vocabulary = COCO,
) -> dict[str, Any]:
    """Return ground truth as JSON that `annotations.load_truth` reads, and refuses for another family or vocabulary.

    Args:
        truth: the names of the objects in each image, as `annotations.load_truth` returns them.
        family: the CHAIR family that the reference captions were read with.
        sources: the files that the ground truth was made from; their names and SHA-256 are recorded.
        vocabulary: the vocabulary that the names of the objects come from.

    Returns:
        `{"family", "vocabulary": {"name", "sha256"}, "sources": [{"file", "sha256"}, …], "categories": [names],
        "objects": {image id: [numbers of categories, from 0]}}`.

    Raises:
        InputError: a source can no longer be read.
        UnknownFamily: there is no CHAIR family of this name.
    """
    check_family(family)
    # All names of the vocabulary are listed and everything is sorted, so that the same ground truth gives the same file.
    names = sorted(vocabulary.objects)
    number = {name: at for at, name in enumerate(names)}
    return {
        "family": family,
        "vocabulary": {"name": vocabulary.name, "sha256": vocabulary.sha256},
        "sources": [{"file": Path(path).name, "sha256": file_digest(Path(path))} for path in sources],
        "categories": names,
        "objects": {
            str(image): sorted(number[name] for name in truth[image]) for image in sorted(truth, key=_order)
        },
    }


def _order(image: ImageId) -> tuple[bool, int, str]:
    """Return a key that sorts whole numbers by size and puts names after them; Python cannot compare the two."""
    return (True, 0, image) if isinstance(image, str) else (False, image, "")
