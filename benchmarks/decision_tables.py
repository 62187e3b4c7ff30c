"""Tables of ``benchmarks/decisions.py``: how often a model in half precision decides otherwise than in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODELS = {"demo": "demo model", "random": "random weights"}
HALF = ("bfloat16", "float16")
LABELS = {
    "none: argmax": ("none", "most likely token", "steps"),
    "vcd: kept by the cutoff": ("VCD", "tokens that the cutoff keeps", "tokens"),
    "vcd: argmax": ("VCD", "most likely token", "steps"),
    "m3id: kept by the cutoff": ("M3ID", "tokens that the cutoff keeps", "tokens"),
    "m3id: gate 0.7 closed": ("M3ID", "gate 0.7 closed", "steps"),
    "m3id: gate 0.9 closed": ("M3ID", "gate 0.9 closed", "steps"),
    "m3id: argmax": ("M3ID", "most likely token", "steps"),
    "pai: kept by the cutoff": ("PAI", "tokens that the cutoff keeps", "tokens"),
    "pai: argmax": ("PAI", "most likely token", "steps"),
    "var: sinks": ("VAR", "sinks", "tokens of the prompt by layer"),
    "var: heads": ("VAR", "heads that look at the picture", "heads by row and layer"),
    "var: argmax": ("VAR", "most likely token", "steps"),
    "vhr: heads": ("VHR", "selected heads", "heads by layer"),
    "vhr: argmax": ("VHR", "most likely token", "steps"),
    "vsv: argmax": ("VSV", "most likely token", "steps"),
    "sla: argmax": ("SLA", "most likely token", "steps"),
}
"""By decision: the method, what is decided, and what is counted."""
VARIANTS = {
    "output projection": ("none: argmax", "vcd: kept by the cutoff", "m3id: gate 0.7 closed", "m3id: gate 0.9 closed"),
    "heads": ("vhr: heads",),
    "attention scores": ("pai: kept by the cutoff", "var: heads"),
}  # fmt: skip
"""By what a variant computes in float32: the decisions that it could change."""


EXACT_NAMES = tuple(VARIANTS)
"""What variants compute in float32, as ``benchmarks/decisions.py`` names it."""


def share(count: int, of: int) -> str:
    """Returns a count with its share in per cent."""
    return f"{count:,} of {of:,} ({100 * count / of:.1f} %)"


def cell(row: Mapping[str, int], unit: str) -> str:
    """Returns how often a decision differs: units, steps where units are tokens of a step, and pictures."""
    steps = f"; steps: {share(row['steps_differ'], row['steps'])}" if unit == "tokens" else ""
    return f"{share(row['differ'], row['of'])}{steps}; pictures: {row['pictures_differ']}"


def decisions(result: Mapping[str, Any]) -> str:
    """Returns the table of decisions that differ in half precision."""
    columns = [(model, dtype) for model in MODELS for dtype in HALF]
    heads = " | ".join(f"{MODELS[model]}, {dtype}" for model, dtype in columns)
    lines = [f"| Method | What is decided | Counted | {heads} |", "|---|---|---|" + "---|" * len(columns)]
    for name, (method, what, unit) in LABELS.items():
        cells = [cell(result["models"][model]["ways"][dtype][name], unit) for model, dtype in columns]
        lines.append(f"| {method} | {what} | {unit} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", facts(result)]) + "\n"


def variants(result: Mapping[str, Any]) -> str:
    """Returns the table of what more exact values would change in bfloat16."""
    lines = [
        "| In float32 | Decision | "
        + " | ".join(f"{label}, as it is | {label}, in float32" for label in MODELS.values())
        + " |",
        "|---|---|" + "---|---|" * len(MODELS),
    ]
    for exact, names in VARIANTS.items():
        for name in names:
            method, what, _ = LABELS[name]
            cells = []
            for model in MODELS:
                ways = result["models"][model]["ways"]
                for way in ("bfloat16", f"bfloat16, {exact} in float32"):
                    row = ways[way][name]
                    cells.append(f"{row['differ']:,} of {row['of']:,}")
            label = what if method == "none" else f"{method}: {what}"
            lines.append(f"| {exact} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def control(result: Mapping[str, Any]) -> int:
    """Returns how many decisions of the float32 models differ where they read one picture at a time."""
    (way,) = {
        way for model in result["models"].values() for way in model["ways"] if way.startswith("float32")
    }
    return sum(row["differ"] for model in result["models"].values() for row in model["ways"][way].values())


def facts(result: Mapping[str, Any]) -> str:
    """Returns how the figures were measured."""
    versions, machine = result["versions"], result["hardware"]
    steps = " and ".join(
        f"{result['models'][model]['steps']:,} steps ({label})" for model, label in MODELS.items()
    )
    dims = "/".join(map(str, result["var"]["dims"]))
    return (
        f"Against the same model in float32 under teacher forcing: both read the float32 model's greedy captions of"
        f" n = {result['n']} pictures of `{result['split']}`, {steps}, seed {result['seed']}. Methods at their defaults; VAR"
        f" with dims {dims} and tau {result['var']['tau']}. Of a cutoff, *tokens* are those that either model keeps, and"
        " *steps* are those in which the kept tokens are not the same. Where the float32 models read one picture at a time"
        f" instead of in batches, {control(result)} decisions differed. {machine['cpu']}, {machine['threads']} thread, torch"
        f" {versions['torch']}, transformers {versions['transformers']}, Keepsight {versions['keepsight']}."
    )
