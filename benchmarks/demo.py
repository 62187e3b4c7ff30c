"""The demo's test splits under every chosen setting: ``python benchmarks/demo.py`` (after ``benchmarks/choose.py``).

Writes ``benchmarks/results/demo-test.json`` and ``demo-test-shifted.json``, from which the tables are made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sightline import parse
from sightline.demo.compare import compare, digest
from sightline.demo.model import WEIGHTS, load

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--split", action="append", help="may be repeated (default: both test splits)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load()
    chosen = json.loads((RESULTS / "choose.json").read_text())["chosen"]
    weights = digest(WEIGHTS / "model.safetensors")
    for split in args.split or ("test", "test-shifted"):
        found = compare(model, processor, map(parse, chosen), split=split, n=args.images, weights=weights)
        (RESULTS / f"demo-{split}.json").write_text(json.dumps(found.to_json(), indent=1) + "\n")
        for row in found.to_json()["rows"]:
            print(
                f"{split}  {row['method']:<44} CHAIR_i {100 * row['chair_i']:.1f}  recall {100 * row['recall']:.1f}"
            )


if __name__ == "__main__":
    main()
