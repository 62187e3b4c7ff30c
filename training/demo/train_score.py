"""Score a demo checkpoint with plain greedy decoding: ``python -m training.demo.train_score CHECKPOINT --splits ...``.

The figures go into the checkpoint's ``training-log.json`` under ``scores``, as fractions. Every decision
about the recipe uses the ``val`` splits; the ``test`` splits are scored once, at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keepsight.demo.model import PROMPT
from keepsight.demo.world import SPLITS, Scene, scenes
from keepsight.eval.chair import score as chair

FIGURES = ("chair_s", "chair_i", "recall")
"""The figures of CHAIR that are recorded."""


@dataclass(frozen=True)
class Described:
    """A scene's caption as the model wrote it, in the form in which CHAIR reads captions."""

    image_id: int
    caption: str


def describe(model: Any, processor: Any, picked: Sequence[Scene], batch: int = 50) -> list[Described]:
    """Returns greedy captions of ``picked`` for the prompt that the model was trained on, in batches of ``batch``."""
    import torch

    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    written: list[Described] = []
    for start in range(0, len(picked), batch):
        some = picked[start : start + batch]
        inputs = processor(
            text=[prompt] * len(some), images=[one.image() for one in some], return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False)
        texts = processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        written += [Described(one.image_id, text.strip()) for one, text in zip(some, texts, strict=True)]
    return written


def score_checkpoint(folder: Path, splits: Iterable[str], n: int) -> dict[str, Any]:
    """Returns CHAIR figures of greedy captions on the first ``n`` scenes of each split, as fractions with 95 % intervals."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # The checkpoint is stored in float16, in which a CPU is slow; the demo is loaded in float32 as well.
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found: dict[str, Any] = {}
    for split in splits:
        picked = scenes(split, n)
        report = chair.score(describe(model, processor, picked), {one.image_id: one.names for one in picked})
        found[split] = {"n": n}
        for figure in FIGURES:
            value, interval = getattr(report, figure), report.ci[figure]
            bounds = [round(bound, 4) for bound in interval] if interval else None
            found[split][figure] = {"value": round(value, 4), "interval": bounds}
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.demo.train_score", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--splits", nargs="+", default=["val", "val-shifted"], choices=SPLITS)
    parser.add_argument("--n", type=int, default=500)
    arguments = parser.parse_args()
    found = score_checkpoint(arguments.checkpoint, arguments.splits, arguments.n)
    log = arguments.checkpoint / "training-log.json"
    kept = json.loads(log.read_text())
    # Scores of other splits stay: the test splits are scored in another run than the val splits.
    kept["scores"] = {**kept.get("scores", {}), **found}
    log.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
