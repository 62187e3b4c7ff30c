"""The tables that help to choose a method say what was measured, and choose by rule."""

from __future__ import annotations

from typing import Any

import pytest
from method_tables import FRONT_PAGE, Measured, effects, facts, per_token, short, which

from keepsight import methods


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "ci": [value - 0.01, value + 0.01]}


def row(method: str, chair_i: float = 0.2, f1: float = 0.8, seconds: float = 1.0) -> dict[str, Any]:
    moved = {
        "chair_i": {**figure(chair_i - 0.3), "verdict": "lower"},
        "recall": {**figure(0.0), "verdict": "no significant difference"},
        "f1": {**figure(f1 - 0.7), "verdict": "higher"},
    }
    return {
        "method": method,
        "figures": {"chair_i": figure(chair_i), "f1": figure(f1), "recall": figure(0.7)},
        "differences": moved,
        "control": {"differences": moved},
        "cost": {"relative_seconds": seconds},
    }


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "methods": list(rows), "rule": "CHAIR, family pattern", "images": 1000, "n": 9000, "bootstrap": {"resamples": 10000},
        "runs": [
            {
                "hardware": [{"threads": 1, "cpu": "a CPU"}], "seed": 0, "batch": 64,
                "versions": {"torch": "2", "transformers": "5", "keepsight": "0"},
            }
        ],
    }  # fmt: skip


def measured() -> Measured:
    rows = [
        row("greedy", chair_i=0.3, f1=0.7),
        row("m3id:decay=0.5", chair_i=0.1, f1=0.6, seconds=1.8),
        row("vcd", chair_i=0.15, f1=0.9, seconds=2.5),
        row("vhr:alpha=1.5", chair_i=0.25),
        row("sla", chair_i=0.28),
    ]
    both = (result(*rows), result(*rows))
    cost = {
        "parameters": 138_000_000,
        "hardware": {"cpu": "another CPU", "threads": 1},
        "rows": [
            {"method": "vcd", "way": "separate", "decode_ratio": 1.9},
            {"method": "vcd", "way": "fused", "decode_ratio": 1.1},
            {"method": "var:tau=0.5", "way": "edit", "decode_ratio": 1.04},
        ],
    }
    return Measured(both, both, (cost,))


def test_each_need_takes_the_best_by_its_rule() -> None:
    lines = which(measured()).splitlines()
    specs = [line.split(" | ")[1] for line in lines[2:7]]
    assert specs == ["`m3id:decay=0.5`", "`vcd`", "`vhr:alpha=1.5`", "`sla`", "`var`"]
    assert lines[2].count("-20.0 [-21.0, -19.0]") == 2
    assert "+20.0 [+19.0, +21.0]" in lines[3]
    assert lines[3].endswith("| 2.50× | 1.10× |")
    assert lines[6].endswith("| not measured: the demo model has no attention sinks | | | 1.04× |")
    assert "Measured on the demo model (not on any other)" in lines[-1]


def test_effects_name_the_settings_and_both_splits() -> None:
    text = effects(measured(), "m3id")
    assert (
        "captions under `m3id:decay=0.5`: CHAIR_i, points | -20.0 [-21.0, -19.0] | -20.0 [-21.0, -19.0]"
        in text
    )
    assert "captions: recall, points | *+0.0 [-1.0, +1.0]* |" in text
    assert effects(measured(), "var") == (
        "`var` was not measured on the demo model: the demo model has no attention sinks.\n"
    )
    assert effects(measured(), "other") == "`other` was not measured on the demo model.\n"


def test_facts_say_how_it_was_measured() -> None:
    text = facts(measured())
    for part in (
        "1,000 pictures",
        "9,000 questions",
        "seed 0",
        "a CPU",
        "138 million random weights",
        "another CPU",
    ):
        assert part in text


def test_costs_of_amateurs_are_those_of_shared_passes() -> None:
    assert [per_token(measured(), name) for name in ("vcd", "var", "m3id")] == ["1.10×", "1.04×", ""]


@pytest.mark.parametrize("name", FRONT_PAGE)
def test_the_short_list_links_the_paper(name: str) -> None:
    assert f"| `{name}` | [{methods()[name].paper}](https://arxiv.org/abs/" in short(methods())
