"""Markdown tables of ``results/sinks.json``, as docs/sinks.md shows them: ``python benchmarks/sinks.py --table``."""

from __future__ import annotations

from typing import Any

KINDS = {
    "backcopy": "backcopy",
    "text": "captions without a picture",
    "pictures": "captions of pictures",
    "beside": "backcopy under pictures",
}

LEARNED = 3.0
"""With a loss above this, backcopy was not learned: its chain has 2.35 nats, and 64 equally likely symbols 4.16."""


def conditions_table(result: dict[str, Any]) -> str:
    """Returns a table with one row for each stage of each condition and each kind of rows that it was measured on."""
    lines = [
        "| condition | decoder, seed | last stage | CPU s | loss | measured on | sink rate | first token, mean |"
        " first token, highest head | its max/rms | its max/median | highest image token | image max/rms | calibrate |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for condition in result["conditions"]:
        # How packaged or planted weights start is shown once, in the condition in which nothing was trained.
        stages = (
            condition["stages"][1:]
            if len(condition["stages"]) > 1 and condition["start"] != "nothing"
            else condition["stages"]
        )
        rows = [(stage, kind) for stage in stages for kind in KINDS if kind in stage]
        for number, (stage, kind) in enumerate(rows):
            name = f"`{condition['name']}`" if number == 0 else ""
            lines.append(_stage_row(name, condition, stage, KINDS[kind], stage[kind]))
    return "\n".join(lines)


def _stage_row(
    name: str, condition: dict[str, Any], record: dict[str, Any], said: str, figures: dict[str, Any]
) -> str:
    """Returns the row of one stage on one kind of rows; figures are the highest over layers."""
    layers = figures["layers"]
    trained = record["stage"]
    losses = {"caption": "captions", "answer": "answers", "backcopy": "backcopy"}
    cells = [
        name,
        f"{condition['layers']} × {condition['heads']}, {condition['seed']}",
        "as it starts"
        if trained is None
        else f"{trained['rows']}, {trained['steps']} steps, {trained['rate']:g}",
        f"{record['cpu_seconds']:.0f}",
        ", ".join(f"{losses[kind]} {_loss(kind, value)}" for kind, value in record["losses"].items()),
        said,
        f"{100 * figures['sink_rate']:.0f} %",
        f"{100 * max(one['mass_mean'] for one in layers):.0f} %",
        f"{100 * max(one['mass_of_highest_head'] for one in layers):.0f} %",
        f"{max(one['first_token']['max_over_rms'] for one in layers):.1f}",
        f"{max(one['first_token']['max_over_median'] for one in layers):.0f}",
    ]
    if "picture_by_layer" in figures:
        pictured = figures["picture_by_layer"]
        cells += [
            f"{100 * max(one['highest_token'] for one in pictured):.1f} %",
            f"{max(one['largest_max_over_rms'] for one in pictured):.1f}",
            _verdict(figures),
        ]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def _loss(kind: str, value: float) -> str:
    """Returns a loss, with a remark where backcopy was not learned."""
    return f"{value:.2f}, not learned" if kind == "backcopy" and value > LEARNED else f"{value:.2f}"


def _verdict(figures: dict[str, Any]) -> str:
    """Returns whether calibration accepts the model; empty where it did not run."""
    if "calibrate" not in figures:
        return ""
    return "accepts" if figures["calibrate"]["supported"] else "refuses"


def captions_table(result: dict[str, Any]) -> str:
    """Returns a table of CHAIR for every condition that starts from the packaged weights."""
    lines = [
        "| condition | method | CHAIR_i % | recall % | Δ CHAIR_i | Δ recall |",
        "|---|---|---|---|---|---|",
    ]
    for condition in result["conditions"]:
        for row in condition.get("captions", []):
            method = row["method"] if row["method"] == "greedy" else f"`{row['method']}`"
            changed = [
                _change(row["difference"][rate]) if "difference" in row else ""
                for rate in ("chair_i", "recall")
            ]
            name = f"`{condition['name']}`"
            rates = [_rate(row, rate) for rate in ("chair_i", "recall")]
            lines.append(f"| {' | '.join([name, method, *rates, *changed])} |")
    return "\n".join(lines)


def planted_table(result: dict[str, Any]) -> str:
    """Returns a table of what planted sinks take and what VAR gives back."""
    lines = [
        "| model | method | attention: visual sinks | `<s>` | rest of the picture | CHAIR_i % | recall % |"
        " Δ CHAIR_i to unplanted | Δ CHAIR_i to planted | Δ recall to planted |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["planted"]["rows"]:
        wanted = f" {100 * row['wanted_share']:.0f} %" if "wanted_share" in row else ""
        name = row["model"] if row["model"] in ("unplanted", "dimension cleared") else f"planted{wanted}"
        method = row["model"] if row["model"].startswith("VAR") else "greedy"
        seen = row.get("attention")
        shares = ["", "", ""]
        if seen:
            # The mean is over layers 2 to 5, where sinks are planted.
            shares = [
                f"{100 * sum(seen[key][2:]) / 4:.0f} %"
                for key in ("visual_sinks", "first_token", "other_image")
            ]
        to_plain, to_planted = row.get("difference_to_unplanted"), row.get("difference_to_planted")
        cells = [name, method, *shares, _rate(row, "chair_i"), _rate(row, "recall")]
        cells.append(_change(to_plain["chair_i"]) if to_plain else "")
        cells += [_change(to_planted[rate]) if to_planted else "" for rate in ("chair_i", "recall")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(row: dict[str, Any], name: str) -> str:
    """Returns a rate and its interval, in per cent."""
    low, high = row["ci"][name]
    return f"{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _change(found: dict[str, Any]) -> str:
    """Returns a difference and its interval, in points."""
    low, high = found["ci"]
    return f"{100 * found['value']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Returns all tables, by name."""
    return {
        "conditions": conditions_table(result),
        "captions": captions_table(result),
        "planted": planted_table(result),
    }
