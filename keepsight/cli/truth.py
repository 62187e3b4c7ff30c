"""``keepsight truth``: gathers what is in the images from COCO's annotations once, and keeps it in a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keepsight.cli._options import Family, References, Synonyms


def truth(
    annotations: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help="COCO instances, such as instances_val2014.json. Repeat the option for several files.",
        ),
    ],
    references: References = None,
    family: Family = "pattern",
    synonyms: Synonyms = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write.",
            show_default="chair-truth-FAMILY.json beside the first annotation file",
        ),
    ] = None,
) -> None:
    """Gather what is in the images once, so that keepsight chair need not read COCO's large files every time.

        keepsight truth --annotations instances.json --references captions.json
        keepsight chair said.jsonl --ground-truth chair-truth-pattern.json

    The file says from which files (by SHA-256), in which family and with which vocabulary it was made. [bold]keepsight
    chair[/bold] refuses it for another family or vocabulary.
    """
    import json

    from keepsight.cli._files import check_outputs
    from keepsight.eval.annotations import load_truth
    from keepsight.eval.chair.score import COCO, check_family
    from keepsight.eval.chair.synonyms import read_vocabulary
    from keepsight.eval.errors import EmptyFile
    from keepsight.eval.ground_truth_file import to_json
    from keepsight.files import write_whole

    check_family(family)
    sources = [*annotations, *(references or ())]
    target = out or annotations[0].parent / f"chair-truth-{family}.json"
    check_outputs([target], [*sources, *([synonyms] if synonyms else [])])
    vocabulary = COCO if synonyms is None else read_vocabulary(synonyms, family)
    found = load_truth(sources, None, family, vocabulary=vocabulary)
    if not found:
        raise EmptyFile(f"{annotations[0]}: knows no image")
    content = to_json(found, family=family, sources=sources, vocabulary=vocabulary)
    write_whole(target, json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
    objects = sum(map(len, found.values())) / len(found)
    images = "1 image" if len(found) == 1 else f"{len(found)} images"
    print(f"{target}: {images}, {objects:.1f} objects each, family {family}, vocabulary {vocabulary.name}")
