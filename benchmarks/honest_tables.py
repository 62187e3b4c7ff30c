"""Writes the tables of ``benchmarks/honest.py``: CHAIR and POPE on the demo world, every method beside its controls."""

from __future__ import annotations

from typing import Any

CHAIR = {"chair_s": "CHAIR_s", "chair_i": "CHAIR_i", "recall": "recall", "precision": "precision"}
POPE = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1", "yes_ratio": "yes"}
NO_VAR = "| `var` | not run: no sinks in this model"
CUT = "greedy, cut to as many mentions as that"


def rate(entry: dict[str, Any], key: str) -> str:
    """Returns a rate and its interval, in per cent."""
    value, bounds = entry["figures"][key]["value"], entry["figures"][key]["ci"]
    return f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def change(entry: dict[str, Any], key: str) -> str:
    """Returns a paired difference with its interval, in points, and in italics where the interval holds zero."""
    found = (entry.get("differences") or {}).get(key)
    if found is None:
        return ""
    low, high = found["ci"]
    text = f"{100 * found['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"*{text}*" if found["verdict"] == "no significant difference" else text


def facts(result: dict[str, Any]) -> str:
    """Returns a sentence that says how a table was measured."""
    bench, run = result["bench"], result["runs"][0]
    machine, versions = run["hardware"][0], run["versions"]
    questions = "" if bench["name"] == "chair" else f", {result['n']} questions"
    return (
        f"Measured on the demo model (not on any other), split `{bench['split']}`, {result['images']} pictures{questions},"
        f" seed {run['seed']}; {result['rule']}; brackets are 95 % bootstrap intervals over pictures"
        f" ({result['bootstrap']['resamples']:,} resamples, paired for differences), italics where the interval of a"
        f" difference holds zero; cost is seconds per answer over greedy's in the same run, in batches of {run['batch']};"
        f" {machine['threads']} thread of {machine['cpu']}, torch {versions['torch']}, transformers"
        f" {versions['transformers']}, Keepsight {versions['keepsight']}."
    )


def chair(result: dict[str, Any]) -> str:
    """Returns the two tables of CHAIR: figures, and differences to greedy search."""
    lines = [
        f"| | {' | '.join(f'{label} %' for label in CHAIR.values())} | words | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["methods"]:
        # A method that only says less makes fewer mistakes as well. Its
        # control is therefore greedy text that says as little.
        for name, entry in ((f"`{row['method']}`", row), (CUT, row.get("control"))):
            if entry is None:
                continue
            figures = " | ".join(rate(entry, key) for key in CHAIR)
            cost = f"{row['cost']['relative_seconds']:.2f}×" if entry is row else ""
            lines.append(f"| {name} | {figures} | {entry['figures']['length']['value']:.1f} | {cost} |")
    lines.append(NO_VAR + " | " * len(CHAIR) + "| |")
    lines += [
        "",
        "| against greedy | Δ CHAIR_i | Δ recall | Δ words | Δ CHAIR_i against greedy cut |",
        "|---|---|---|---|---|",
    ]
    for row in result["methods"][1:]:
        words = row["differences"]["length"]["value"]
        lines.append(
            f"| `{row['method']}` | {change(row, 'chair_i')} | {change(row, 'recall')} | {words:+.1f}"
            f" | {change(row['control'], 'chair_i')} |"
        )
    return "\n".join([*lines, "", facts(result)]) + "\n"


def short(result: dict[str, Any], methods: tuple[str, ...]) -> str:
    """Returns a table that fits a front page: greedy search, and a few methods with their controls."""
    lines = [
        "| | invented mentions (CHAIR_i), % | objects found (recall), % | Δ CHAIR_i, paired |",
        "|---|---|---|---|",
    ]
    for row in result["methods"]:
        if row["method"] not in ("greedy", *methods):
            continue
        figures = f"{rate(row, 'chair_i')} | {rate(row, 'recall')}"
        lines.append(f"| `{row['method']}` | {figures} | {change(row, 'chair_i')} |")
        if row.get("control"):
            cut = row["control"]
            lines.append(f"| its control | {rate(cut, 'chair_i')} | {rate(cut, 'recall')} | |")
    return "\n".join([*lines, "", facts(result)]) + "\n"


def pope(result: dict[str, Any]) -> str:
    """Returns the two tables of POPE: figures over all questions, and F1 on each set of questions."""
    lines = [
        f"| | {' | '.join(f'{label} %' for label in POPE.values())} | Δ F1 | Δ recall | unreadable | cost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["methods"]:
        figures = " | ".join(rate(row, key) for key in POPE)
        lines.append(
            f"| `{row['method']}` | {figures} | {change(row, 'f1')} | {change(row, 'recall')} | {row['unparsed']}"
            f" | {row['cost']['relative_seconds']:.2f}× |"
        )
    lines.append(NO_VAR + " | " * (len(POPE) + 2) + "| |")
    lines += ["", "| F1 % | random | popular | adversarial |", "|---|---|---|---|"]
    for row in result["methods"]:
        splits = " | ".join(rate(row, f"{split}.f1") for split in ("random", "popular", "adversarial"))
        lines.append(f"| `{row['method']}` | {splits} |")
    return "\n".join([*lines, "", facts(result)]) + "\n"


def pope_choice(choice: dict[str, Any]) -> str:
    """Returns a table of every setting that was tried for POPE, with those that were taken."""
    lines = ["| setting | F1 % | recall % | Δ F1 | Δ recall | |", "|---|---|---|---|---|---|"]
    for curve in choice["curves"]:
        for row in curve["methods"]:
            # Every search has greedy search as its first row, which is shown once.
            if row["method"] == curve["baseline"] and curve is not choice["curves"][0]:
                continue
            broken = curve["refused"].get(row["method"], ())
            mark = "chosen" if row["method"] == curve["chosen"] else "costs too much recall" if broken else ""
            lines.append(
                f"| `{row['method']}` | {rate(row, 'f1')} | {rate(row, 'recall')}"
                f" | {change(row, 'f1')} | {change(row, 'recall')} | {mark} |"
            )
    return "\n".join([*lines, "", facts(choice["curves"][0])]) + "\n"
