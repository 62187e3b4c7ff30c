"""Writes the figures of a run as table cells and as Markdown; its JSON is the dictionary itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BRANCH = {
    "fused": "fused", "separate": "separate", "naive": "naive loop", "edit": "", "cfg": "transformers' own",
    "eager": "peer of released VAR", "static": "plain", "compiled": "plain",
}  # fmt: skip
HEADINGS = (
    "method",
    "branch",
    "batch",
    "prompt + new",
    "prefill",
    "per token",
    "ms per token",
    "tokens/s",
    "peak memory",
)


def cells(row: Mapping[str, Any], code: str = "`{}`") -> list[str]:
    """One row of the table, a text for each of `HEADINGS`.

    Args:
        row: a row that ``measure`` made, with its memory.
        code: a format for specs of methods; the names of other variants are written as they are.
    """
    memory = row["memory_ratio"]
    return [
        code.format(row["method"]) if row["way"] in ("fused", "separate", "naive", "edit") else row["method"],
        BRANCH[row["way"]],
        str(row["batch"]),
        f"{row['prompt_tokens']} + {row['new_tokens']}",
        _ratio(row, "prefill"),
        _ratio(row, "decode"),
        f"{row['plain_token_ms']:.2f} → {row['token_ms']:.2f}",
        f"{row['plain_tokens_per_second']:.1f} → {row['tokens_per_second']:.1f}",
        "" if memory is None else f"{memory:.2f}× ({row['plain_peak_mib']:.0f} → {row['peak_mib']:.0f} MiB)",
    ]


def _ratio(row: Mapping[str, Any], part: str) -> str:
    """The ratio to plain of ``prefill`` or ``decode``, with the smallest and the largest of the pairs."""
    low, high = row[f"{part}_spread"]
    return f"{row[f'{part}_ratio']:.2f}× [{low:.2f}, {high:.2f}]"


def facts(result: Mapping[str, Any]) -> str:
    """How the figures were measured, in a sentence: model, precision, hardware, clock, repeats and versions."""
    machine, versions, settings = result["hardware"], result["versions"], result["settings"]
    where = machine["gpus"][0] if settings["device"] != "cpu" and machine["gpus"] else machine["cpu"]
    threads = (
        ""
        if settings["device"] != "cpu"
        else f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    )
    clock = "CPU seconds of the process" if settings["clock"] == "cpu" else "wall time"
    cache = "" if settings["cache"] == "dynamic" else f", {settings['cache']} cache"
    return (
        f"{result['subject']}, {settings['dtype']}{cache}; {where}{threads}; {clock}, median of {settings['repeats']}"
        f" [min, max]; torch {versions['torch']}, transformers {versions['transformers']}, Keepsight"
        f" {versions['keepsight']}."
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a run as Markdown, followed by ``facts`` and the notes."""
    lines = _table(HEADINGS, [cells(row) for row in result["rows"]])
    return "\n".join([*lines, "", facts(result), *_notes(result)]) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)]


def _notes(result: Mapping[str, Any]) -> list[str]:
    """The notes of a run, a paragraph each."""
    return [f"\n{note}." for note in result["notes"]]
