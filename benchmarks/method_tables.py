"""Tables that help to choose a method: what each did to the demo model, and which one fits a need.

Everything is read from recorded results, and a need names a rule instead of a method, so that no table can contradict
the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import honest_tables

from keepsight.method import Method

Result = Mapping[str, Any]
Row = Mapping[str, Any]

FRONT_PAGE = ("m3id", "vcd", "pai", "vhr", "var", "vsv", "sla")
"""The methods of the short list. A method that is added later does not change the front page."""
PLAIN = ("greedy", "sample")
CHEAP = 1.1
"""Up to this time of an answer, relative to greedy, a method counts as almost free."""
NO_SECOND_PROMPT = ("sla", "var")
"""Methods that read no other prompt than the main one, neither before the generation nor during it."""
NOT_RUN = {"var": "the demo model has no attention sinks"}
"""Why a method is missing from the recorded results."""


@dataclass(frozen=True)
class Measured:
    """The recorded results that the tables are made of: CHAIR and POPE on both splits, and the cost per token.

    Attributes:
        chair, pope: results of ``benchmarks/honest.py`` on ``test-shifted`` and on ``test``, in this order.
        cost: results of ``keepsight bench --shape 130m``.
    """

    chair: tuple[Result, Result]
    pope: tuple[Result, Result]
    cost: tuple[Result, ...]


def name_of(spec: str) -> str:
    """The method of a spec string."""
    return spec.partition(":")[0]


def row_of(result: Result, name: str) -> Row | None:
    """A method's row; None where the method was not run."""
    return next((row for row in result["methods"] if name_of(row["method"]) == name), None)


def effects(measured: Measured, name: str) -> str:
    """What one method did to captions and to yes-or-no answers of the demo model, on both splits."""
    both = [row_of(result, name) for result in measured.chair]
    if None in both:
        why = f": {NOT_RUN[name]}" if name in NOT_RUN else ""
        return f"`{name}` was not measured on the demo model{why}.\n"
    asked = [row_of(result, name) for result in measured.pope]
    said, answered = both[0]["method"], asked[0]["method"]
    lines = [
        "| On the demo model, against greedy search | `test-shifted`, where habit misleads | `test`, where habit is right |",
        "|---|---|---|",
        _line(f"captions under `{said}`: CHAIR_i, points", both, lambda row: change(row, "chair_i")),
        _line("captions: recall, points", both, lambda row: change(row, "recall")),
        _line(
            "captions: CHAIR_i, against greedy ones cut to as many mentions",
            both,
            lambda row: change(row["control"], "chair_i"),
        ),
        _line("captions: time", both, time_of),
        _line(f"POPE under `{answered}`: F1, points", asked, lambda row: change(row, "f1")),
        _line("POPE: recall, points", asked, lambda row: change(row, "recall")),
        _line("POPE: time", asked, time_of),
    ]
    return "\n".join(lines) + "\n"


def _line(label: str, rows: list[Any], cell: Callable[[Any], str]) -> str:
    return f"| {label} | {' | '.join(cell(row) for row in rows)} |"


def change(row: Row, key: str) -> str:
    """A paired difference with its interval; in italics where the interval holds zero."""
    return honest_tables.change(dict(row), key)


def time_of(row: Row) -> str:
    """The time of an answer, relative to greedy search in the same run."""
    return f"{row['cost']['relative_seconds']:.2f}×"


def per_token(measured: Measured, name: str) -> str:
    """The cost per token at the 130m shape; empty where it was not measured.

    Of a method with an amateur it is that of passes that both share, which is what ``fused="auto"`` does in a model of this
    size.
    """
    rows = [row for result in measured.cost for row in result["rows"] if name_of(row["method"]) == name]
    at_defaults = [row for row in rows if row["method"] == name] or rows
    found = {row["way"]: f"{row['decode_ratio']:.2f}×" for row in at_defaults}
    return found.get("fused") or found.get("edit", "")


def facts(measured: Measured) -> str:
    """How all of it was measured."""
    chair, pope, cost = measured.chair[0], measured.pope[0], measured.cost[0]
    run, machine = chair["runs"][0], chair["runs"][0]["hardware"][0]
    return (
        f"Measured on the demo model (not on any other): {chair['rule']}, on {chair['images']:,} pictures and POPE on"
        f" {pope['images']} pictures with {pope['n']:,} questions of each split, seed {run['seed']}; brackets are 95 %"
        f" bootstrap intervals over pictures ({chair['bootstrap']['resamples']:,} resamples, paired), italics where the"
        f" interval holds zero; times are seconds per answer over greedy's in the same run, in batches of {run['batch']};"
        f" {machine['threads']} thread of {machine['cpu']}, torch {run['versions']['torch']}, transformers"
        f" {run['versions']['transformers']}, Keepsight {run['versions']['keepsight']}. Costs per token are those of a model"
        f" of {round(cost['parameters'] / 1e6)} million random weights ({cost['hardware']['cpu']},"
        f" {cost['hardware']['threads']} thread), the amateur in the passes of the main generation; another processor gives"
        " other figures (docs/bench.md)."
    )


def which(measured: Measured) -> str:
    """Which method fits a need: the spec to type, what it did to the demo model, and what it costs."""
    shifted, questions = measured.chair[0]["methods"], measured.pope[0]["methods"]
    captions = _methods(shifted)
    answers = _methods(questions)
    cheap = [row for row in captions if row["cost"]["relative_seconds"] <= CHEAP]
    alone = [row for row in captions if name_of(row["method"]) in NO_SECOND_PROMPT]
    needs = [
        ("long captions with the fewest invented objects", _lowest(captions), "chair_i"),
        ("the right answers to yes-or-no questions", max(answers, key=_f1), "f1"),
        (f"fewer invented objects at no more than {CHEAP}× the time", _lowest(cheap), "chair_i"),
        ("to read no second prompt, before the answer or during it", _lowest(alone), "chair_i"),
    ]
    lines = [
        "| You want | Type | Where habit misleads (`test-shifted`) | Where habit is right (`test`) | Time of an answer"
        " | Time per token, 130m |",
        "|---|---|---|---|---|---|",
    ]
    for need, row, key in needs:
        name = name_of(row["method"])
        results = measured.pope if key == "f1" else measured.chair
        cells = [_summary(row_of(result, name), key) for result in results]
        lines.append(
            f"| {need} | `{row['method']}` | {' | '.join(cells)} | {time_of(row)} | {per_token(measured, name)} |"
        )
    missing = f"not measured: {NOT_RUN['var']}"
    lines.append(
        f"| to use a model that has attention sinks | `var` | {missing} | | | {per_token(measured, 'var')} |"
    )
    changes = "Changes are in points, against greedy search: CHAIR_i is lower where it is better, F1 and recall are higher."
    return "\n".join([*lines, "", f"{changes} {facts(measured)}"]) + "\n"


def _methods(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["method"] not in PLAIN]


def _lowest(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: float(row["figures"]["chair_i"]["value"]))


def _f1(row: Row) -> float:
    return float(row["figures"]["f1"]["value"])


def _summary(row: Row | None, key: str) -> str:
    assert row is not None
    label = {"chair_i": "CHAIR_i", "f1": "F1"}[key]
    return f"{label} {change(row, key)}, recall {change(row, 'recall')}"


def short(methods: Mapping[str, type[Method]]) -> str:
    """A fixed selection of methods, with their papers and what they do."""
    lines = ["| Method | Paper | What it does |", "|---|---|---|"]
    for name in FRONT_PAGE:
        cls = methods[name]
        lines.append(
            f"| `{name}` | [{cls.paper}](https://arxiv.org/abs/{cls.paper}), {cls.year} | {cls.gist} |"
        )
    return "\n".join(lines) + "\n"
