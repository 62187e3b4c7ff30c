"""Draws the figures of ``keepsight bench``: a dot with its spread for each row, or lines if there are several lengths."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from keepsight.errors import InputError
from keepsight.experiments.latency.report import BRANCH, facts

COLOURS = {
    "fused": "#0072b2", "separate": "#d55e00", "naive": "#999999", "edit": "#009e73", "cfg": "#cc79a7", "eager": "#e69f00",
    "static": "#56b4e9", "compiled": "#000000",
}  # fmt: skip
PARTS = (("prefill", "prefill over plain"), ("decode", "time per token over plain"))
LENGTHS = {"new_tokens": "new tokens", "prompt_tokens": "tokens of the prompt, the picture's included"}
DPI = 150


class PlotsMissing(InputError):
    """A figure was asked for, and matplotlib, which draws it, is not installed."""


def check_plots() -> None:
    """Check that matplotlib can be imported, before a measurement that takes long.

    Raises:
        PlotsMissing: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlotsMissing(
            "plots need matplotlib; install the extra 'plots': pip install -e '.[plots]' in the clone"
        ) from error


def draw(result: Mapping[str, Any]) -> bytes:
    """Draw the rows of a run, the prefill on the left and the time per token on the right.

    Args:
        result: what ``experiments.latency.run.run`` returned.

    Returns:
        The bytes of a PNG.

    Raises:
        PlotsMissing: matplotlib is not installed.
    """
    check_plots()
    # A figure made without pyplot needs no display, and leaves the caller's own matplotlib state alone.
    from matplotlib.figure import Figure

    rows = result["rows"]
    varied = [key for key in LENGTHS if len({row[key] for row in rows}) > 1]
    figure = Figure(figsize=(11, 4.4) if varied else (11, 1.6 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=not varied)
    for axis, (part, title) in zip(axes, PARTS, strict=True):
        if varied:
            _lines(axis, rows, part, varied[0])
        else:
            _dots(axis, rows, part)
        axis.set_title(title, fontsize=11)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    if varied:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.supxlabel(facts(result), fontsize=7, color="#555555")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def _label(row: Mapping[str, Any], *, batch: bool) -> str:
    """What the figure calls a row; ``batch`` says whether the size of the batch is part of it."""
    parts = [
        # The spec of a method may be long, such as that of VAR with its dimensions, and the figure has little room for
        # names.
        row["method"].partition(":dims")[0][:38],
        BRANCH[row["way"]],
        f"batch {row['batch']}" if batch else "",
    ]
    return " · ".join(filter(None, parts))


def _dots(axis: Any, rows: list[dict[str, Any]], part: str) -> None:
    """Draw each row as a dot with its spread, from top to bottom."""
    batches = len({row["batch"] for row in rows}) > 1
    for at, row in enumerate(rows):
        low, high = row[f"{part}_spread"]
        colour = COLOURS[row["way"]]
        value = row[f"{part}_ratio"]
        axis.plot([low, high], [at, at], color=colour, linewidth=2, alpha=0.5)
        axis.plot([value], [at], "o", color=colour, markersize=6)
        axis.annotate(
            f"{value:.2f}×", (high, at), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.axvline(1, color="#555555", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [_label(row, batch=batches) for row in rows], fontsize=8)
    # The limits are given in reverse, so that the first row stands on top.
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.12)


def _lines(axis: Any, rows: list[dict[str, Any]], part: str, length: str) -> None:
    """Draw a line over the lengths for each method and variant."""
    batches = len({row["batch"] for row in rows}) > 1
    other = next(key for key in LENGTHS if key != length)
    several = len({row[other] for row in rows}) > 1
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = _label(row, batch=batches) + (
            f" · {row[other]} {LENGTHS[other].split(',')[0]}" if several else ""
        )
        lines.setdefault(name, []).append(row)
    marks: dict[str, str] = {}
    for name, points in lines.items():
        points = sorted(points, key=lambda row: row[length])
        # The colour stands for the variant, so the shape of the dots tells the methods apart.
        mark = marks.setdefault(points[0]["method"], "osD^vPX*"[len(marks) % 8])
        x = [row[length] for row in points]
        spread = [row[f"{part}_spread"] for row in points]
        colour = COLOURS[points[0]["way"]]
        axis.plot(
            x, [row[f"{part}_ratio"] for row in points], f"{mark}-", color=colour, markersize=5, label=name
        )
        axis.fill_between(
            x, [low for low, _ in spread], [high for _, high in spread], color=colour, alpha=0.12
        )
    axis.axhline(1, color="#555555", linewidth=0.8)
    axis.set_xscale("log", base=2)
    ticks = sorted({row[length] for row in rows})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    # A logarithmic axis has minor ticks of its own, which stand for no length that was measured.
    axis.minorticks_off()
    axis.set_xlabel(LENGTHS[length], fontsize=9)
    axis.set_ylim(bottom=0)
