"""Writes the tables of ``benchmarks/serve.py``, as the docs show them."""

from __future__ import annotations

from typing import Any

NAMES = {
    "keepsight serve": "plain",
    "keepsight serve, one at a time": "plain, `--max-batch 1`",
    "transformers serve": "`transformers serve`",
}


def throughput(result: dict[str, Any]) -> str:
    """Returns the table of rates and latencies, one row for each server or method."""
    lines = ["| | answers/s | median latency, s | 95 %, s | × |", "|---|---|---|---|---|"]
    for row in result["throughput"]:
        name = NAMES.get(row["server"]) or f"`{row['server'].removeprefix('keepsight serve ')}`"
        low, high = row["times_transformers_serve_range"]
        lines.append(
            f"| {name} | {row['answers_per_second']:.1f} | {row['latency_median']:.2f} | {row['latency_p95']:.2f}"
            f" | {row['times_transformers_serve']:.2f} [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join([*lines, "", facts(result)]) + "\n"


def soak(result: dict[str, Any]) -> str:
    """Returns the table of memory, objects and hooks over the minutes of a mixed load."""
    load = result["soak"]
    # Earlier results counted Python objects, later ones blocks of memory.
    key, what = (
        ("blocks", "Python's memory blocks") if "blocks" in load["quiet"] else ("objects", "Python objects")
    )
    seconds = load["curve"][-1]["seconds"]
    wanted = [60, *(share * seconds for share in (0.25, 0.5, 0.75)), seconds]
    lines = [
        f"| after | resident memory, MiB | {what} | hooks | entries of edits | running + waiting |",
        "|---|---|---|---|---|---|",
    ]
    shown = [min(load["curve"], key=lambda point: abs(point["seconds"] - moment)) for moment in wanted]
    for point, name in [
        *((p, f"{p['seconds'] / 60:.0f} min") for p in shown),
        (load["quiet"], "quiet again"),
    ]:
        lines.append(
            f"| {name} | {point['rss_mib']:.0f} | {point[key]:,} | {point['hooks']} | {point['sessions']}"
            f" | {point['running']} + {point['waiting']} |"
        )
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(load["requests"].items()))
    total = sum(load["requests"].values())
    return "\n".join([*lines, "", f"{total:,} requests ({kinds}). {facts(result)}"]) + "\n"


def facts(result: dict[str, Any]) -> str:
    """Returns a sentence that says what the figures were measured on."""
    machine, versions = result["hardware"], result["versions"]
    machine = machine[0] if isinstance(machine, list) else machine
    return (
        f"Demo model; {machine['cores']} cores of {machine['cpu']}, torch {versions['torch']},"
        f" transformers {versions['transformers']}, Keepsight {versions['keepsight']}."
    )
