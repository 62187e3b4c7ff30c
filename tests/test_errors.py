from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

import pytest

import keepsight
from keepsight.errors import KeepsightError, did_you_mean, first_line
from keepsight.files import as_json, finite_or_none


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("shapes differ"), "shapes differ"),
        (ValueError("\n \n  shapes differ  \n(3, 4) and (4, 4)"), "shapes differ"),
        (ValueError("a\r\nb"), "a"),
        (KeyError(), "KeyError"),
        (RuntimeError(" \n\t"), "RuntimeError"),
    ],
)
def test_the_first_line_of_a_message(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_the_nearest_names_are_suggested_and_else_all() -> None:
    assert did_you_mean("M3DI", ["m3id", "vcd"]) == "did you mean 'm3id'?"
    assert did_you_mean("xyz", ["vcd", "m3id"]) == "known: m3id, vcd"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_holds_only_finite_numbers(value: float) -> None:
    assert finite_or_none(value) is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"value": value})
    assert finite_or_none(-2.5) == -2.5


def error_classes() -> list[type[KeepsightError]]:
    for folder in ("eval", "experiments"):
        for module in pkgutil.walk_packages([f"{keepsight.__path__[0]}/{folder}"], f"keepsight.{folder}."):
            import_module(module.name)
    found: list[type[KeepsightError]] = [KeepsightError]
    for one in found:
        found += [other for other in one.__subclasses__() if other not in found]
    return found


def test_every_error_says_in_a_sentence_what_it_means() -> None:
    for one in error_classes():
        said = inspect.cleandoc(vars(one).get("__doc__") or "")
        assert said[:1].isupper(), one
        assert said.endswith("."), one
