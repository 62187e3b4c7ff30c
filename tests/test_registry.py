"""Recipes: frozen, validated, and the same after a trip through a string."""

from __future__ import annotations

import dataclasses
import math

import pytest

import keepsight
from keepsight import (
    M3ID,
    SLA,
    VCD,
    VSV,
    InvalidParameter,
    UnknownMethod,
    UnknownParameter,
    methods,
    parse,
)


def test_issue_example() -> None:
    assert parse("m3id:decay=0.05,gate=0.9") == M3ID(decay=0.05, gate=0.9)
    assert parse(" VCD : alpha = 2 ") == VCD(alpha=2.0)
    assert parse("m3id:cutoff=none,gate=0.5") == M3ID(gate=0.5)
    assert parse("m3id:also_drop=7+8").also_drop == (7, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "spec"),
    [
        (M3ID(), "m3id"),
        (M3ID(gate=0.9), "m3id:gate=0.9"),
        (M3ID(gate=0.9, cutoff=0.1), "m3id:gate=0.9,cutoff=0.1"),
        (M3ID(decay=0.05, cutoff=0.05, also_drop=(3, 4)), "m3id:decay=0.05,cutoff=0.05,also_drop=3+4"),
        (VSV(site="mlp", gain="cos", layers=(1, 2)), "vsv:site=mlp,gain=cos,layers=1+2"),
        (SLA(final_norm=True), "sla:final_norm=true"),
        (VCD(), "vcd"),
        (VCD(noise_step=999), "vcd:noise_step=999"),
    ],
)
def test_spec_round_trip(recipe: keepsight.Method, spec: str) -> None:
    assert recipe.spec == spec
    assert parse(spec) == recipe
    assert eval(repr(recipe), {"M3ID": M3ID, "SLA": SLA, "VCD": VCD, "VSV": VSV}) == recipe


@pytest.mark.parametrize("name", methods())
def test_every_method_round_trips_and_is_frozen(name: str) -> None:
    recipe = parse(name)
    assert parse(recipe.spec) == recipe
    assert parse(recipe.off().spec) == recipe.off()
    assert eval(repr(recipe), {cls.__name__: cls for cls in methods().values()}) == recipe
    first = recipe.parameters()[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(recipe, first, 1.0)
    with pytest.raises(TypeError):
        type(recipe)(1.0)  # type: ignore[call-arg]
    for item in recipe.parameters():
        assert item.metadata["text"], "every parameter is described"
    for text in (recipe.paper, recipe.title, recipe.gist, recipe.cost, type(recipe).__doc__):
        assert text


def test_unknown_names_say_what_is_near() -> None:
    with pytest.raises(UnknownMethod, match="did you mean 'm3id'"):
        parse("m3di")
    with pytest.raises(UnknownMethod, match="known: m3id, pai, sla, var, vcd, vhr, vsv"):
        parse("zzz")
    with pytest.raises(UnknownParameter, match="did you mean 'alpha'"):
        parse("vcd:alhpa=1")


@pytest.mark.parametrize(
    "spec",
    ["vcd:alpha=nan", "vcd:alpha=inf", "vcd:alpha=-1", "vcd:beta=1.5", "vcd:noise_step=1000", "vcd:noise_step=2.5",
     "vcd:alpha=much", "vcd:alpha", "vcd:alpha=1,alpha=2", "m3id:decay=none", "m3id:gate=2", "m3id:also_drop=x",
     "vhr:prompt_rows=some", "sla:final_norm=maybe", "vsv:site=none"],
)  # fmt: skip
def test_bad_values(spec: str) -> None:
    with pytest.raises(InvalidParameter) as error:
        parse(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, "1", True, None, [1.0]])
def test_bad_values_in_python(value: object) -> None:
    with pytest.raises(InvalidParameter, match="alpha"):
        VCD(alpha=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["vcd:seed=", "m3id:also_drop=", "m3id:also_drop=1+", "m3id:first="])
def test_whole_numbers_have_64_bits(spec: str) -> None:
    with pytest.raises(InvalidParameter, match="at most 64 bits"):
        parse(f"{spec}100000000000000000000")
    with pytest.raises(InvalidParameter, match="at most 64 bits"):
        M3ID(decay=10**400)


def test_the_largest_seed_draws() -> None:
    assert parse(f"vcd:seed={2**63 - 1}").spec == f"vcd:seed={2**63 - 1}"
