"""How text-dominated is the demo model, and what do methods change? ``OMP_NUM_THREADS=1 python benchmarks/dominance.py``

Answers about the first pictures of ``test`` greedily, plainly and under each method, and measures MDI, AEI and the picture's
share of attention: by group of layers with 95 % bootstrap intervals over pictures, by layer, token by token, under every
reading of the definition, and as the paired change to the plain model. Writes ``benchmarks/results/dominance.json``. The
figures are about the demo model, and about no other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from keepsight import parse
from keepsight.analysis.modality_dominance import measure_all
from keepsight.cli.dominance import as_numbers
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes
from keepsight.eval.modality_dominance.score import Reading
from keepsight.experiments.environment import hardware, versions, weights
from keepsight.inference.generation import Generation

RESULT = Path(__file__).parent / "results" / "dominance.json"
METHODS = ("pai:alpha=0.5", "pai:alpha=0.5,gamma=1.0", "m3id:decay=0.07,cutoff=0.02")
"""PAI, its attention alone, and for control a method that leaves attention as it is: it can only change what is said."""
SEED, MAX_NEW_TOKENS = 0, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--split", default="test")
    parser.add_argument("--method", action="append", help="spec; may be repeated (default: METHODS)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    # The demo model's tensors are tiny, so more threads only wait for each other.
    torch.set_num_threads(1)
    model, processor = load()
    names = ["", *(args.method or METHODS)]
    pictures = [scene.image() for scene in scenes(args.split, args.images, SEED)]
    # The plain model is the first row, to which ``as_numbers`` pairs the others picture by picture.
    answers = [
        measure_all(
            model,
            processor,
            pictures,
            PROMPT,
            *([parse(name)] if name else []),
            generation=Generation(max_new_tokens=MAX_NEW_TOKENS),
        )
        for name in names
    ]
    result: dict[str, Any] = {
        "model": "demo",
        "split": args.split,
        "seed": SEED,
        "prompt": PROMPT,
        "max_new_tokens": MAX_NEW_TOKENS,
        **as_numbers([parse(name).spec if name else "" for name in names], answers, Reading()),
        "weights_sha256": weights("demo")["sha256"],
        "hardware": hardware(model.device),
        "versions": versions(),
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in result["rows"]:
        told = "  ".join(
            f"{group} MDI {found['mdi']['value']:.2f}, picture {100 * found['image_share']['value']:.1f} %"
            for group, found in row["groups"].items()
        )
        print(f"{row['method'] or 'plain':<16} n = {result['n']}  {told}")


if __name__ == "__main__":
    main()
