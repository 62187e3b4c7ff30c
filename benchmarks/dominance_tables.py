"""Writes the tables of ``benchmarks/dominance.py``."""

from __future__ import annotations

from typing import Any

GROUPS = ("early", "middle", "late", "all")


def number(value: float, scale: float = 1, signed: bool = False) -> str:
    """Returns a number with one digit if it is a percentage, else two, and with a true minus sign."""
    digits = 1 if scale == 100 else 2
    text = f"{scale * value:{'+' if signed else ''}.{digits}f}"
    # A number that rounds to 0 has no sign: "−0.00" would tell a direction that is not there.
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def cell(entry: dict[str, Any], scale: float = 1, signed: bool = False) -> str:
    """Returns a value and its interval."""
    low, high = (number(bound, scale, signed) for bound in entry["ci"])
    return f"{number(entry['value'], scale, signed)} [{low}, {high}]"


def figures(groups: dict[str, Any], signed: bool = False) -> str:
    """Returns the cells of one row: MDI of each group of layers, and the figures of all layers."""
    whole = groups["all"]
    cells = [cell(groups[group]["mdi"], 1, signed) for group in GROUPS]
    cells += [cell(whole[name], 1, signed) for name in ("aei_text", "aei_image")]
    return " | ".join([*cells, cell(whole["image_share"], 100, signed)])


def measured(result: dict[str, Any]) -> str:
    """Returns the table of all methods, and how it was measured."""
    lines = [
        "| method | MDI early | MDI middle | MDI late | MDI all | AEI_T all | AEI_O all | picture's share, all, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(f"| `{row['method'] or 'greedy'}` | {figures(row['groups'])} |")
        if row.get("difference"):
            lines.append(f"| − greedy, paired | {figures(row['difference'], signed=True)} |")
    reading, machine, versions = result["reading"], result["hardware"], result["versions"]
    counts = result["rows"][0]["counts"]
    text = sum(counts[part] for part in reading["text"])
    heads = "attention averaged over heads first" if reading["heads"] == "mean" else "every head by itself"
    mean = "mean of each answer's figure" if reading["average"] == "samples" else "answers pooled"
    lines += [
        "",
        f"Measured on the demo model (not on any other), split `{result['split']}`, n = {result['n']} pictures, seed"
        f" {result['seed']}, greedy search; text = {'+'.join(reading['text'])}, {heads}, {mean},"
        f" {reading['group']} layers a group; |T| = {text:.0f}, |O| = {counts['image']:.0f};"
        f" brackets are 95 % bootstrap intervals over pictures; {machine['threads']} thread of {machine['cpu']},"
        f" torch {versions['torch']}, transformers {versions['transformers']}, Keepsight {versions['keepsight']}.",
    ]
    return "\n".join(lines) + "\n"


def readings(result: dict[str, Any]) -> str:
    """Returns the table of the plain model under every reading of the definition."""
    lines = [
        "| greedy, if read otherwise | MDI early | MDI middle | MDI late | MDI all |",
        "|---|---|---|---|---|",
    ]
    for reading in result["rows"][0]["readings"]:
        cells = " | ".join(number(reading["groups"][group]["mdi"]["value"]) for group in GROUPS)
        lines.append(f"| {reading['name']} | {cells} |")
    return "\n".join(lines) + "\n"
