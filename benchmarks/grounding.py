"""How well grounding finds the demo model's invented objects without a truth: ``python benchmarks/grounding.py``.

Pictures are captioned, every object word is scored by the plain model (``keepsight.grounding``), and CHAIR (family
pattern) says which words are invented. The score is an AUROC: 0.5 is chance.

The rule, fixed before a test split was looked at: of all scores and aggregates the pair with the highest mean AUROC over
val and val-shifted, greedy captions; of equals the first. Its threshold is the one with the largest F1 on val-shifted, to
two decimals. Baselines take part like everything else, but for two that do not ask what the picture says: `position`,
the word's place in the caption, and `prior`, how unlikely the model finds it without the picture.

Writes ``benchmarks/results/grounding.json``; ``--table`` prints it as Markdown, as ``docs/grounding.md`` shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import keepsight
from keepsight import mitigate, parse
from keepsight.demo.model import PROMPT, WEIGHTS, load
from keepsight.demo.splits import DEFAULT_METHODS
from keepsight.demo.world import scenes
from keepsight.eval.stats.auroc import auroc, auroc_interval, best_threshold, detect, paired_auroc
from keepsight.files import file_digest
from keepsight.grounding import AGGREGATES, SCORES, teacher_force
from keepsight.grounding.alignment import object_words, word_tokens
from keepsight.grounding.scores import aggregated, joined
from keepsight.inference.detokenizer import until_end
from keepsight.source.prompts import prepare

RESULT = Path(__file__).parent / "results" / "grounding.json"
CONTRASTS = (0.25, 0.5, 1.0, 2.0)
"""The weights w of ``contrast`` that are tried."""
GREEDY = "greedy"
Key = tuple[str, float | None, str | None]
"""A score, the weight of its contrast (None for others), and an aggregate (None where a word has one value)."""


@dataclass(frozen=True)
class Case:
    """One object word of one caption: its picture, whether it is invented, and its support by every score."""

    image: int
    invented: bool
    tokens: int
    support: dict[Key, float]


def cases(model: Any, processor: Any, split: str, n: int, way: str, seed: int, batch: int = 50) -> list[Case]:
    """Returns every object word that the model says about the first ``n`` scenes of a split, under ``way`` of decoding."""
    shown = scenes(split, n, seed)
    found: list[Case] = []
    for start in range(0, n, batch):
        part = shown[start : start + batch]
        inputs = prepare(processor, [scene.image() for scene in part], PROMPT)
        with mitigate(model, *([] if way == GREEDY else [parse(way)])):
            written = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        rows = written[:, inputs["input_ids"].shape[1] :].tolist()
        answers = [until_end(row, model.generation_config.eos_token_id) for row in rows]
        # The answers are scored after the block, so the plain model judges what a method wrote.
        figures = teacher_force(model, inputs, answers, weights=CONTRASTS)
        for scene, ids, by_weight in zip(part, answers, figures, strict=True):
            found += judge(processor.tokenizer, scene, ids, dict(zip(CONTRASTS, by_weight, strict=True)))
    return found


def judge(tokenizer: Any, scene: Any, ids: list[int], by_weight: dict[float, Any]) -> list[Case]:
    """Returns the cases of one caption."""
    read = {weight: joined(tokenizer, ids, figures) for weight, figures in by_weight.items()}
    # Text, spans and all scores but ``contrast`` are the same for every weight, so any of them will do.
    plain = read[CONTRASTS[0]]
    found = []
    for word in object_words(plain.text):
        own = word_tokens([token.span for token in plain.tokens], word.span)
        support: dict[Key, float] = {}
        for score in SCORES:
            for weight in CONTRASTS if score == "contrast" else (None,):
                values = [read[weight or CONTRASTS[0]].tokens[at].support(score) for at in own]
                support |= {(score, weight, way): aggregated(values, way) for way in AGGREGATES}
        # These two say nothing about the picture, and show how far the mere place or habit of a word goes.
        support["prior", None, None] = -plain.tokens[own[0]].without_image
        support["position", None, None] = -float(own[0])
        found.append(Case(scene.image_id, word.object not in scene.names, len(own), support))
    return found


def columns(found: list[Case], key: Key) -> tuple[list[float], list[bool], list[int]]:
    """Returns scores (higher is more suspicious), labels and images, as the functions on AUROC take them."""
    return (
        [-case.support[key] for case in found],
        [case.invented for case in found],
        [case.image for case in found],
    )


def choose(val: list[Case], shifted: list[Case]) -> tuple[Key, float]:
    """Returns the score, and the threshold under which a word is flagged, by the rule of this file."""
    # ``position`` and ``prior`` have no aggregate, and take no part in the choice.
    keys = [key for key in val[0].support if key[2] is not None]
    mean = {key: sum(auroc(*columns(split, key)[:2]) or 0.0 for split in (val, shifted)) / 2 for key in keys}
    # ``max`` takes the first of equals, as the rule says; rounding keeps the last bits of a sum from deciding.
    best = max(keys, key=lambda key: round(mean[key], 6))
    return best, round(-best_threshold(*columns(shifted, best)[:2]), 2)


def report(found: list[Case], best: Key, threshold: float) -> dict[str, Any]:
    """Returns the figures of one split under one way of decoding."""
    rows: list[dict[str, Any]] = []
    for key in found[0].support:
        scores, labels, images = columns(found, key)
        rows.append(
            {
                **dict(zip(("score", "weight", "aggregate"), key, strict=True)),
                "auroc": auroc(scores, labels),
                "ci": auroc_interval(scores, labels, images),
            }
        )
    scores, labels, images = columns(found, best)
    gain = paired_auroc(columns(found, ("likelihood", None, best[2]))[0], scores, labels, images)
    return {
        "mentions": len(found),
        "invented": sum(labels),
        "mentions_of_several_tokens": sum(case.tokens > 1 for case in found),
        "rows": rows,
        "chosen_minus_likelihood": {"value": gain.value, "ci": [gain.low, gain.high]},
        "at_threshold": detect(scores, labels, -threshold)._asdict(),
    }


RENAMED = {"entropy": "negative_entropy"}
"""Scores that recorded results hold under an earlier name, and their present name; the figures are the same."""


def table(result: dict[str, Any]) -> str:
    """Returns the test splits' figures as Markdown, in per cent."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    best = result["chosen"]
    splits = {split: result["splits"][split] for split in ("test", "test-shifted")}
    lines = ["| score | aggregate | test | test-shifted |", "|---|---|---|---|"]
    for at, row in enumerate(splits["test"][GREEDY]["rows"]):
        # The chosen score and the plain difference are shown with every aggregate, all others with the chosen one alone.
        in_full = row["score"] == "difference" or (row["score"], row["weight"]) == (
            best["score"],
            best["weight"],
        )
        if not in_full and row["aggregate"] not in (None, best["aggregate"]):
            continue
        name = RENAMED.get(row["score"], row["score"]) + (f", w = {row['weight']:g}" if row["weight"] else "")
        if all(row[part] == best[part] for part in ("score", "weight", "aggregate")):
            name = f"**{name}** (the default)"
        cells = [
            f"{percent(found['auroc'])} [{percent(found['ci'][0])}, {percent(found['ci'][1])}]"
            for found in (ways[GREEDY]["rows"][at] for ways in splits.values())
        ]
        lines.append(f"| {name} | {row['aggregate'] or ''} | {' | '.join(cells)} |")
    lines += [
        "",
        "| split | captions | mentions | invented | default | likelihood | default − likelihood | flagged | precision"
        " | recall |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for split, ways in splits.items():
        for way, found in ways.items():
            areas = {(row["score"], row["weight"], row["aggregate"]): row["auroc"] for row in found["rows"]}
            gain, hit = found["chosen_minus_likelihood"], found["at_threshold"]
            bounds = ", ".join(f"{100 * bound:+.1f}" for bound in gain["ci"]).replace("-", "−")
            cells = [
                split,
                f"`{way}`",
                str(found["mentions"]),
                percent(found["invented"] / found["mentions"]) + " %",
                percent(areas[best["score"], best["weight"], best["aggregate"]]),
                percent(areas["likelihood", None, best["aggregate"]]),
                f"{100 * gain['value']:+.1f}".replace("-", "−") + f" [{bounds}]",
                *(percent(hit[name]) + " %" for name in ("flagged", "precision", "recall")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    versions = result["versions"]
    return "\n".join(
        [
            *lines,
            "",
            f"AUROC × 100 with 95 % bootstrap intervals over pictures. Demo model (and no other), n = {result['n']}"
            f" pictures of each split, seed {result['seed']}; one case for each mention, CHAIR family pattern;"
            f" {result['hardware']['cores']} cores of {result['hardware']['cpu']}, torch {versions['torch']},"
            f" transformers {versions['transformers']}, Keepsight {versions['keepsight']}.",
        ]
    )


def processor_name() -> str:
    """Returns the name of the CPU, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="of each split")
    parser.add_argument("--seed", type=int, default=0, help="of the demo world")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="only print the tables of what was written")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())))
        return
    torch.set_num_threads(1)
    model, processor = load()

    def look(split: str, way: str = GREEDY) -> list[Case]:
        return cases(model, processor, split, args.images, way, args.seed)

    chosen_on = {split: look(split) for split in ("val", "val-shifted")}
    best, threshold = choose(chosen_on["val"], chosen_on["val-shifted"])
    print("chosen:", best, "threshold", threshold)
    result: dict[str, Any] = {
        "rule": (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "chosen": {**dict(zip(("score", "weight", "aggregate"), best, strict=True)), "threshold": threshold},
        "metric": "AUROC of support against CHAIR's labels, family pattern, one case for each mention",
        "n": args.images,
        "seed": args.seed,
        "max_new_tokens": 64,
        "bootstrap": {"resamples": 1000, "seed": 0, "level": 0.95, "unit": "pictures"},
        "model": "demo",
        "weights_sha256": file_digest(WEIGHTS / "model.safetensors"),
        "hardware": {"cpu": processor_name(), "cores": os.cpu_count(), "threads": 1, "device": "cpu"},
        "versions": {
            "keepsight": keepsight.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "transformers", "numpy")},
        },
        "splits": {},
    }
    for split in ("val", "val-shifted", "test", "test-shifted"):
        # The rule chooses on greedy captions of the ``val`` splits; methods are looked at on the test splits alone.
        ways = (GREEDY,) if split in chosen_on else (GREEDY, *DEFAULT_METHODS)
        result["splits"][split] = {}
        for way in ways:
            found = chosen_on[split] if split in chosen_on else look(split, way)
            figures = result["splits"][split][way] = report(found, best, threshold)
            print(f"{split}, {way}: {figures['invented']} of {figures['mentions']} mentions are invented")
            for row in figures["rows"]:
                name = f"{row['score']} {row['weight'] or ''} {row['aggregate'] or ''}"
                print(f"  {name:<24} {row['auroc']:.3f} [{row['ci'][0]:.3f}, {row['ci'][1]:.3f}]")
            print("  chosen minus likelihood:", figures["chosen_minus_likelihood"])
            print("  at the threshold:", figures["at_threshold"], flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
