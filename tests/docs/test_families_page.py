"""The page on families says what was recorded, and what was recorded are the types of this transformers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import family_tables
import mapped
import pytest
import tables
import transformers
from mapped_methods import SPECS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
RECORDED: dict[str, Any] = json.loads((tables.RESULTS / "families.json").read_text())
MODELS = RECORDED["models"]


def model(*results: str) -> dict[str, Any]:
    return {"methods": {spec: {"result": one} for spec, one in zip(SPECS, results, strict=True)}}


def test_the_page_is_what_was_recorded() -> None:
    text = PAGE.read_text("utf-8")
    assert tables.render(text) == text, "run `make tables`"


def test_every_type_of_the_installed_transformers_was_recorded() -> None:
    recorded = RECORDED["versions"]["transformers"]
    if transformers.__version__ != recorded:
        pytest.skip(f"recorded with transformers {recorded}, and this is {transformers.__version__}")
    missing = {*mapped.names(), *mapped.variants()} - set(MODELS)
    assert not missing, f"run benchmarks/families.py: {sorted(missing)} are not in families.json"
    gone = set(MODELS) - {*mapped.names(), *mapped.variants()}
    assert not gone, f"run benchmarks/families.py: {sorted(gone)} are mapped no longer"
    assert not set(family_tables.NOT_MAPPED) & set(mapped.names())


def test_every_family_that_people_ask_for_was_built() -> None:
    assert [name for name in family_tables.KNOWN if "methods" not in MODELS.get(name, {})] == []


def test_every_setting_was_run_and_counted() -> None:
    built = [row["methods"] for row in MODELS.values() if "methods" in row]
    assert RECORDED["specs"] == list(SPECS)
    assert [spec for specs in family_tables.COLUMNS.values() for spec in specs] == list(SPECS)
    assert all(list(row) == list(SPECS) for row in built)
    found = Counter(one["result"] for row in built for one in row.values())
    assert {name: RECORDED["counts"][name] for name in found} == found
    assert RECORDED["counts"]["types_not_built"] == sum("not_built" in row for row in MODELS.values())


def test_nothing_that_was_recorded_is_wrong() -> None:
    wrong = {
        (name, spec): one["reasons"]
        for name, row in MODELS.items()
        for spec, one in row.get("methods", {}).items()
        if one["result"] == "wrong"
    }
    assert not wrong


def test_every_type_stands_on_the_page_once() -> None:
    known, others, built = (
        table(RECORDED) for table in (family_tables.known, family_tables.others, family_tables.not_built)
    )
    for name in MODELS:
        assert sum(f"`{name}`" in line for text in (known, others, built) for line in _rows(text)) == 1, name


def _rows(table: str) -> list[str]:
    """The lines of a table without what a meaning says, in which other types may be named."""
    return [
        line.split(" | ")[0 if line.startswith("| `") else 1] for line in table.splitlines() if " | " in line
    ]


def test_a_cell_says_what_runs_of_a_method() -> None:
    whole = model(*["works"] * 9)
    assert family_tables.cells(whole) == ("yes",) * 7
    part = model("wrong", "no effect", "refused", "works", "refused", "works", "refused", "refused", "works")
    assert family_tables.cells(part) == (
        "**WRONG**",
        "no effect",
        "guidance alone",
        "no",
        "all but `site=mlp`",
        "no",
        "yes",
    )


def test_a_new_reason_for_which_nothing_is_built_has_to_be_explained() -> None:
    assert "Refused by name" in family_tables.meaning("it is an encoder-decoder")
    with pytest.raises(ValueError, match="MEANS does not say"):
        family_tables.meaning("the moon is full")
