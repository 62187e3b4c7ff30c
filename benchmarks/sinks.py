"""What makes attention sinks emerge in a decoder of the demo's size? ``python benchmarks/sinks.py``

Trains small decoders under named conditions (``--list`` names them), first on bigram-backcopy, the task on which sinks are
known to emerge, then on the demo's own text and pictures, and reports what the first token and single image tokens get, how
massive they are and what ``keepsight calibrate`` says. ``--planted`` instead plants sinks in the packaged model's weights
and measures what they take and what VAR gives back. Each writes its part of ``benchmarks/results/sinks.json``; conditions
that were not run keep their last figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sink_conditions import CONDITIONS, Condition, Stage
from sink_measure import backcopy_figures, beside_figures, headline, picture_figures, text_figures
from sink_planted import clear, measure_planted, plant, quietest_dimension
from sink_tables import tables
from sink_tasks import BACKCOPY, Backcopy, backcopy_rows, gallery, picture_rows, text_rows
from torch import Tensor, nn

from keepsight.demo.model import PROMPT, build_model, load
from keepsight.demo.world import scene
from keepsight.source.prompts import prepare
from training.demo.train_data import Lines
from training.demo.train_stages import token_losses

RESULT = Path(__file__).parent / "results" / "sinks.json"
WEIGHT = {"caption": 1.0, "answer": 0.5, BACKCOPY: 1.0}
"""The weight of each kind of loss; captions and answers have those of the demo's training."""


class Workshop:
    """What conditions share: the packaged model's tower, processor and token lines, drawn pictures, the backcopy task.

    Args:
        pictures: the number of pictures that conditions are trained on; a fifth as many come from ``train-mixed``.
    """

    def __init__(self, pictures: int) -> None:
        model, self.processor = load()
        self.tower_state = model.model.vision_tower.state_dict()
        self.lines = Lines(self.processor.tokenizer)
        self.vocabulary = len(self.processor.tokenizer)
        tower = model.model.vision_tower
        self.usual = gallery(tower, "train", pictures)
        self.mixed = gallery(tower, "train-mixed", pictures // 5)
        self.check = gallery(tower, "val", 64)
        self.task = Backcopy()

    def build(self, condition: Condition) -> Any:
        """Returns the model that the condition starts from."""
        torch.manual_seed(condition.seed)
        if condition.start == "nothing":
            return build(self.vocabulary, condition.layers, condition.heads, self.tower_state)
        model, _ = load()
        if condition.start == "planted":
            inputs = prepare(self.processor, [one.image() for one in self.check.scenes[:32]], PROMPT)
            dim = quietest_dimension(model, inputs)
            clear(model, dim)
            plant(model, inputs, self.check, dim, 0.5)
        return model

    def rows(self, stage: Stage, seed: int, step: int) -> tuple[Any, Tensor | None]:
        """Returns the rows of one step, and the features of their pictures; None without pictures."""
        rng = np.random.default_rng([seed, 7, step])
        if stage.rows == "backcopy":
            return backcopy_rows(self.task, rng, stage.batch, stage.length, stage.begin), None
        if stage.rows == "text":
            pairs = [
                (scene("train", int(a)), scene("train", int(b)))
                for a, b in rng.integers(26_000, size=(stage.batch, 2))
            ]
            return text_rows(self.lines, pairs, rng), None
        shown, features = [], []
        # One sixth of the rows comes from ``train-mixed``, the share of that gallery among all pictures.
        others = round(stage.batch / 6)
        for known, n in ((self.usual, stage.batch - others), (self.mixed, others)):
            picked = rng.integers(len(known.scenes), size=n).tolist()
            shown += [known.scenes[i] for i in picked]
            features.append(known.features[picked])
        task = self.task if stage.backcopy else None
        made = picture_rows(self.lines, shown, rng, task=task, picture_first=stage.picture_first)
        return made, torch.cat(features)

    def losses(self, model: Any, stage: Stage, seed: int, step: int) -> dict[str, Tensor]:
        """Returns the losses of one step, by kind."""
        rows, features = self.rows(stage, seed, step)
        seen = None if features is None else model.model.multi_modal_projector(features)
        losses = token_losses(model, rows, seen)
        if stage.rows == "text" and stage.backcopy:
            beside = replace(stage, rows="backcopy")
            losses |= token_losses(model, self.rows(beside, seed, step)[0], None)
        return losses


def build(vocabulary: int, layers: int, heads: int, tower: dict[str, Tensor]) -> Any:
    """Returns an untrained model of the demo's shape with another number of layers and heads, and with a trained tower."""
    from transformers import LlavaForConditionalGeneration

    config = build_model(vocabulary).config
    text = config.text_config
    text.num_hidden_layers = layers
    text.num_attention_heads = text.num_key_value_heads = heads
    # The width stays the same, so fewer heads are wider ones.
    text.head_dim = text.hidden_size // heads
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower)
    return model


def train(model: Any, stage: Stage, losses_at: Callable[[int], dict[str, Tensor]]) -> dict[str, float]:
    """Run a stage, and return the mean losses over its last 50 steps."""
    learned = [p for name, p in model.named_parameters() if "vision_tower" not in name]
    # The projector gets no gradient from rows without pictures.
    if stage.rows != "pictures":
        learned = list(model.model.language_model.parameters())
    optimiser = torch.optim.AdamW(learned, lr=stage.rate, betas=(0.9, 0.98), weight_decay=stage.decay)
    warm = max(1, stage.steps // 20)
    model.train()
    ends: list[dict[str, float]] = []
    for step in range(stage.steps):
        # The rate follows the schedule of ``training.demo.train_team.fit``, or stays constant after its warm-up.
        turn = (step - warm) / max(1, stage.steps - warm) * np.pi
        down = 0.05 + 0.95 * 0.5 * (1.0 + np.cos(turn)) if stage.cosine else 1.0
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * ((step + 1) / warm if step < warm else down)
        losses = losses_at(step)
        optimiser.zero_grad(set_to_none=True)
        torch.stack([WEIGHT[kind] * loss for kind, loss in losses.items()]).sum().backward()
        if stage.clip is not None:
            nn.utils.clip_grad_norm_(learned, stage.clip)
        optimiser.step()
        ends = [*ends[-49:], {kind: float(loss.detach()) for kind, loss in losses.items()}]
    model.eval()
    return {kind: round(float(np.mean([one[kind] for one in ends])), 4) for kind in ends[0]}


def run(condition: Condition, shop: Workshop, images: int, keep: Path | None) -> dict[str, Any]:
    """Train one condition, and measure it after every stage, so that it shows which stage made sinks or wore them out."""
    model = shop.build(condition).eval()
    found: dict[str, Any] = {**asdict(condition), "stages": [], "parameters": _size(model)}
    for number, stage in enumerate((None, *condition.stages)):
        # Random weights are not worth measuring; packaged and planted ones are, before anything is trained.
        if stage is None and condition.start == "nothing":
            continue
        began = time.process_time()
        losses: dict[str, float] = {}
        if stage is not None:
            losses = train(model, stage, partial(shop.losses, model, stage, condition.seed + 10 * number))
        spent = time.process_time() - began
        figures = measure(model, stage, shop, condition)
        record = {
            "stage": None if stage is None else asdict(stage),
            "losses": losses,
            "cpu_seconds": round(spent, 1),
        }
        found["stages"].append({**record, **figures})
        for kind, one in figures.items():
            print(
                f"  {'start' if stage is None else stage.rows} ({spent:.0f} s CPU), on {kind}: {headline(one)}",
                flush=True,
            )
    first = any(stage.picture_first for stage in condition.stages)
    # Captions of decoders that started from nothing, and of models that were trained with the picture first, are not
    # comparable with those of the packaged model.
    if condition.start != "nothing" and not first:
        found["captions"] = captioned(
            model, shop.processor, found["stages"][-1]["pictures"]["calibrate"], images
        )
    if keep is not None:
        model.save_pretrained(keep)
        shop.processor.save_pretrained(keep)
    return found


def captioned(model: Any, processor: Any, calibrated: dict[str, Any], images: int) -> list[dict[str, Any]]:
    """Returns CHAIR of greedy captions of ``val-shifted``, and under VAR where the model has sinks."""
    from demo_methods import as_result, compare_methods

    from keepsight import VAR

    methods = [VAR(dims=tuple(calibrated["dims"]), tau=calibrated["tau"])] if calibrated["supported"] else []
    rows = as_result(compare_methods(model, processor, methods, split="val-shifted", n=images))["rows"]
    for row in rows:
        print(
            f"  {row['method']}, val-shifted, n={images}: CHAIR_i {row['chair_i']:.3f}, recall {row['recall']:.3f}",
            flush=True,
        )
    kept = ("method", "chair_i", "chair_s", "recall", "length", "ci", "difference")
    return [{"n": images, **{key: row[key] for key in kept if key in row}} for row in rows]


def measure(model: Any, stage: Stage | None, shop: Workshop, condition: Condition) -> dict[str, Any]:
    """Returns the figures of a model on each kind of rows that its last stage trained on."""
    figures: dict[str, Any] = {}
    if stage is not None and (stage.rows == "backcopy" or stage.backcopy):
        figures["backcopy"] = backcopy_figures(model, shop.task, stage.length, stage.begin)
    if stage is not None and stage.rows == "text":
        figures["text"] = text_figures(model, shop.lines, shop.check)
    if stage is None or stage.rows == "pictures":
        first = stage is not None and stage.picture_first
        figures["pictures"] = picture_figures(model, shop.processor, shop.lines, shop.check, first)
        if stage is not None and stage.backcopy:
            figures["beside"] = beside_figures(model, shop.lines, shop.check, shop.task, first)
    return figures


def _size(model: Any) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def facts() -> dict[str, Any]:
    """Returns versions and hardware of the run."""
    from importlib.metadata import version

    from demo_methods import weights_digest

    import keepsight

    return {
        "versions": {
            "keepsight": keepsight.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "weights_sha256": weights_digest(),
    }


def read(path: Path) -> dict[str, Any]:
    """Returns what earlier runs wrote; empty if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write(path: Path, part: str, value: Any) -> None:
    """Replace one part of the results, and leave the others as they are."""
    path.write_text(json.dumps({**read(path), "facts": facts(), part: value}, indent=1) + "\n")


def main() -> None:
    known = {condition.name: condition for condition in CONDITIONS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the conditions and exit")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/sinks.md and exit")
    parser.add_argument(
        "--only", action="append", choices=known, metavar="NAME", help="may be repeated (default: all)"
    )
    parser.add_argument(
        "--planted",
        action="store_true",
        help="measure sinks planted in the packaged weights, and VAR on them",
    )
    parser.add_argument(
        "--images", type=int, default=300, help="pictures of test-shifted (--planted) or val-shifted"
    )
    parser.add_argument("--pictures", type=int, default=1400, help="pictures that conditions are trained on")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoint of the last condition")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.list:
        for condition in CONDITIONS:
            print(f"{condition.name:<30} {condition.asks}")
        return
    if args.table:
        print("\n\n".join(tables(read(args.out)).values()))
        return
    torch.set_num_threads(1)
    if args.planted:
        check = gallery(load()[0].model.vision_tower, "val", 64)
        write(args.out, "planted", measure_planted(check, args.images))
        return
    shop = Workshop(args.pictures)
    for name in args.only or known:
        print(f"{name}: {known[name].asks}", flush=True)
        found = run(known[name], shop, args.images, args.keep)
        done = {one["name"]: one for one in read(args.out).get("conditions", [])} | {name: found}
        # Results are written after each condition, since all of them together take about 40 minutes.
        write(args.out, "conditions", [done[key] for key in known if key in done])


if __name__ == "__main__":
    main()
