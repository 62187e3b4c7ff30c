"""Writes the tables on cost, from what ``keepsight bench --json`` wrote into ``benchmarks/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keepsight.experiments.latency.report import BRANCH, facts, markdown

RESULTS = Path(__file__).parent / "results"
LENGTHS = "cost-lengths-"
"""How names of files begin that hold a run over lengths; each gets a table of another form."""


def load(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return json.loads(path.read_text())


def cost() -> str:
    """Returns a table for each shape and batch."""
    files = sorted(path for path in RESULTS.glob("cost-*.json") if not path.name.startswith(LENGTHS))
    return "\n".join(markdown(load(path)) for path in files)


def lengths() -> str:
    """Returns tables of ratios over lengths, with one row for each branch and part."""
    return "\n".join(_over_lengths(load(path)) for path in sorted(RESULTS.glob(f"{LENGTHS}*.json")))


def _over_lengths(result: dict[str, Any]) -> str:
    """Returns the table of one run over lengths."""
    rows = result["rows"]
    # A run varies one of two lengths, and the one that has several values heads the columns.
    key, name = ("new_tokens", "new tokens")
    if len({row[key] for row in rows}) == 1:
        key, name = ("image_tokens", "visual tokens")
    values = sorted({row[key] for row in rows})
    lines = [f"| {name} | " + " | ".join(map(str, values)) + " |", "|---" * (len(values) + 1) + "|"]
    # A dictionary instead of a set keeps the order of the run.
    ways = dict.fromkeys((row["method"], row["way"]) for row in rows)
    for part, title in (("prefill", "prefill"), ("decode", "per token")):
        for method, way in ways:
            found = {row[key]: row for row in rows if (row["method"], row["way"]) == (method, way)}
            cells = [_ratio(found[value], part) for value in values]
            lines.append(f"| `{method}` {BRANCH[way]}, {title} | " + " | ".join(cells) + " |")
    fixed = {"new_tokens": "new tokens", "prompt_tokens": "tokens in the prompt", "batch": "in a batch"}
    same = [f"{rows[0][one]} {text}" for one, text in fixed.items() if len({row[one] for row in rows}) == 1]
    return "\n".join([*lines, "", f"{', '.join(same)}; {facts(result)}"]) + "\n"


def _ratio(row: dict[str, Any], part: str) -> str:
    """Returns a ratio and its spread as a cell."""
    low, high = row[f"{part}_spread"]
    return f"{row[f'{part}_ratio']:.2f}× [{low:.2f}, {high:.2f}]"
