"""Recipes: frozen, validated, and the same after a trip through a string."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import keepsight
from keepsight import (
    M3ID,
    SLA,
    VAR,
    VCD,
    VHR,
    VSV,
    ConflictingMethods,
    InputError,
    InvalidParameter,
    OperatorOnly,
    UnknownMethod,
    UnknownParameter,
    methods,
    parse,
    parse_all,
    registry,
)
from keepsight.registry import find


def test_issue_example() -> None:
    assert parse("m3id:decay=0.05,gate=0.9") == M3ID(decay=0.05, gate=0.9)
    assert parse(" VCD : alpha = 2 ") == VCD(alpha=2.0)
    assert parse("m3id:cutoff=none,gate=0.5") == M3ID(gate=0.5)
    assert parse("m3id:also_drop=7/8").also_drop == (7, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "spec"),
    [
        (M3ID(), "m3id"),
        (M3ID(gate=0.9), "m3id:gate=0.9"),
        (M3ID(gate=0.9, cutoff=0.1), "m3id:gate=0.9,cutoff=0.1"),
        (M3ID(decay=0.05, cutoff=0.05, also_drop=(3, 4)), "m3id:decay=0.05,cutoff=0.05,also_drop=3/4"),
        (VSV(site="mlp", gain="cos", layers=(1, 2)), "vsv:site=mlp,gain=cos,layers=1/2"),
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
    with pytest.raises(UnknownMethod, match="known: " + ", ".join(methods())):
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


@pytest.mark.parametrize("spec", ["vcd:seed=", "m3id:also_drop=", "m3id:also_drop=1/", "m3id:first="])
def test_whole_numbers_have_64_bits(spec: str) -> None:
    with pytest.raises(InvalidParameter, match="at most 64 bits"):
        parse(f"{spec}100000000000000000000")
    with pytest.raises(InvalidParameter, match="at most 64 bits"):
        M3ID(decay=10**400)


def test_the_largest_seed_draws() -> None:
    assert parse(f"vcd:seed={2**63 - 1}").spec == f"vcd:seed={2**63 - 1}"


def test_methods_that_act_together_are_joined_with_a_plus() -> None:
    assert parse_all("m3id:decay=0.05 + vhr") == (M3ID(decay=0.05), VHR())
    assert parse_all("vcd") == (VCD(),)
    assert [recipe.spec for recipe in parse_all("vcd:alpha=2+m3id+pai:layers=0/1")] == [
        "vcd:alpha=2.0", "m3id", "pai:layers=0/1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("m3id vhr", r"joined with \+, write 'm3id\+vhr'"),
        ("m3id,vhr", r"joined with \+, write 'm3id\+vhr'"),
        ("vcd:alpha=1,vhr", r"joined with \+, write 'vcd:alpha=1\+vhr'"),
        ("var:dims=0+1", "joined with /: 0/1"),
        ("var:dims=0+1,tau=2", "joined with /: 0/1"),
        ("vcd:alpha=1e+5", "write the exponent without it: 1e5"),
        ("m3id+", r"\+ joins two methods"),
        ("+m3id", r"\+ joins two methods"),
        ("m3id+m3id", "m3id is given twice"),
    ],
)
def test_a_wrong_joiner_is_answered_with_the_right_one(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_all(spec)


def test_numbers_and_texts_survive_the_trip_through_a_spec() -> None:
    for recipe in (VCD(alpha=1e22), VCD(alpha=1.5e-9), VAR(calibration="a+b,100%/c.json", dims=(0, 1))):
        assert parse_all(recipe.spec) == (recipe,)


@pytest.mark.parametrize("path", ["none", "None", " a b ", "\ta", "a,b=c:d%2Be", "%6Eone", "\u00a0x"])
def test_a_text_that_reads_like_the_grammar_survives_the_trip(path: str) -> None:
    assert parse(VAR(calibration=path).spec) == VAR(calibration=path)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of somebody else's, with a method in it."""
    code = 'from keepsight import VCD\n\n\nclass Theirs(VCD):\n    """A method of theirs."""\n'
    (tmp_path / "somebody_s.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "somebody_s"
    sys.modules.pop("somebody_s", None)


def test_a_class_of_ones_own_is_named_by_its_module(mine: str) -> None:
    theirs = find(f"{mine}:Theirs")
    assert theirs(alpha=2.0).spec == f"{mine}:Theirs:alpha=2.0"
    assert parse_all(f"{mine}:Theirs:alpha=2+vhr") == (theirs(alpha=2.0), VHR())
    with pytest.raises(UnknownMethod, match="No module named 'nowhere'"):
        parse("nowhere.at.all:Thing")
    with pytest.raises(UnknownMethod, match="not a concrete subclass"):
        parse("os.path:join")


def test_requests_name_registered_methods_and_plain_values_only(mine: str) -> None:
    before = set(sys.modules)
    for spec in ("os.path:join", f"{mine}.x:X", f"m3id+{mine}.x:Theirs", "keepsight.parts:Edit"):
        with pytest.raises(OperatorOnly):
            parse_all(spec, trusted=False)
    with pytest.raises(OperatorOnly, match="names a file"):
        parse_all("var:calibration=/etc/passwd", trusted=False)
    assert set(sys.modules) == before
    # A registered class may be named by its module as well
    assert parse("keepsight.decoding.vcd:VCD", trusted=False) == VCD()


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points of other distributions, as far as the registry sees them."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry.methods.cache_clear()
    yield found
    registry.methods.cache_clear()


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="keepsight.methods")


def test_other_distributions_declare_methods(declared: list[EntryPoint], mine: str) -> None:
    declared.append(entry("theirs", f"{mine}:Theirs"))
    assert "theirs" in methods()
    assert parse("theirs:alpha=2", trusted=False).spec == f"{mine}:Theirs:alpha=2.0"
    assert find(f"{mine}:Theirs", trusted=False) is methods()["theirs"]


def test_a_broken_entry_point_takes_no_method_away_and_is_told(declared: list[EntryPoint]) -> None:
    declared += [entry("gone", "not_there:Gone"), entry("odd", "os.path:join")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert {"vcd", "m3id"} <= set(methods())
    gone, odd = (str(one.message) for one in caught)
    assert "'gone'" in gone
    assert "cannot be imported" in gone
    assert "is not a concrete keepsight.Method" in odd


def test_two_methods_of_one_name_are_refused(declared: list[EntryPoint], mine: str) -> None:
    declared += [entry("one", f"{mine}:Theirs"), entry("vcd", "keepsight.decoding.vcd:VCD")]
    assert set(methods()) >= {"theirs", "vcd"}  # the very class, declared again
    find(f"{mine}:Theirs").__name__ = "VCD"
    registry.methods.cache_clear()
    with pytest.raises(ConflictingMethods, match="two methods are called 'vcd'"):
        methods()
