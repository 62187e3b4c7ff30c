from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from keepsight import VCD, InvalidParameter
from keepsight.errors import InputError
from keepsight.experiments.decoding_config import (
    DecodingConfig,
    DecodingStrategy,
    build_configs,
    parse_config,
    parse_strategy,
)
from keepsight.inference.row_sampler import RowSampler


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("greedy", "greedy"),
        ("sample", "sample"),
        ("sample:temperature=1,top_p=1", "sample"),
        ("sample:top_p=0.9,temperature=0.5", "sample:temperature=0.5,top_p=0.9"),
        ("beam", "beam"),
        ("beam:num_beams=3", "beam:num_beams=3"),
        ("vcd:alpha=1.0", "vcd"),
        ("greedy+vcd", "vcd"),
        ("  sample + vcd:alpha=0.5  +vhr ", "sample+vcd:alpha=0.5+vhr"),
        ("beam+m3id+vhr", "beam+m3id+vhr"),
        ("sample:temperature=1e5+var:dims=0/1", "sample:temperature=100000.0+var:dims=0/1"),
        ("sample:temperature=1e20", "sample:temperature=1e20"),
        ("keepsight.decoding.vcd:VCD:alpha=0.5+vhr", "vcd:alpha=0.5+vhr"),
    ],
)
def test_a_configuration_has_one_spelling(text: str, name: str) -> None:
    config = parse_config(text)
    assert config.name == name
    assert parse_config(name) == config


def test_a_default_strategy_is_for_configurations_that_name_none() -> None:
    sampled = parse_strategy("sample:temperature=0.5")
    assert parse_config("vcd", sampled) == DecodingConfig(sampled, (VCD(),))
    assert parse_config("greedy+vcd", sampled).name == "vcd"


@given(
    st.builds(
        DecodingStrategy,
        kind=st.just("sample"),
        temperature=st.floats(1e-3, 1e3),
        top_p=st.floats(0, 1, exclude_min=True),
    )
    | st.builds(DecodingStrategy, kind=st.just("beam"), num_beams=st.integers(2, 99))
)
def test_specs_of_strategies_read_back(strategy: DecodingStrategy) -> None:
    assert parse_strategy(strategy.spec) == strategy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty method"),
        ("sampel", "did you mean 'sample'"),
        ("m3di", "did you mean 'm3id'"),
        ("vcd+sample", "write sample first"),
        ("sample+sample", "write sample first"),
        ("vcd+vcd:alpha=2", "given twice"),
        ("sample+m3di", "did you mean 'm3id'"),
        ("sample+", "joins two methods"),
        ("sample:temperature=1e+5+vcd", "write the exponent without it: 1e5"),
        ("var:dims=0+1", "joined with /: 0/1"),
        ("sample+var:dims=0+1", "joined with /: 0/1"),
        ("sample vcd", r"joined with \+: write 'sample\+vcd'"),
        ("sample:top_p=0.9, vcd:alpha=2 vhr", r"write 'sample:top_p=0.9\+vcd:alpha=2\+vhr'"),
        ("m3id:decay=0.05,vhr", r"write 'm3id:decay=0.05\+vhr'"),
        ("m3id & keepsight.decoding.vcd:VCD", r"write 'm3id\+keepsight.decoding.vcd:VCD'"),
        ("sample:temp=1", "no parameter 'temp'"),
        ("greedy:temperature=1", "greedy has no parameter 'temperature': it takes none"),
        ("sample:temperature", "as parameter=value"),
        ("sample:temperature=1,temperature=2", "given twice"),
        ("sample:temperature=0", "above 0"),
        ("sample:temperature=nan", "finite"),
        ("sample:top_p=1.5", "at most 1"),
        ("sample:top_p=hot", "must be a number"),
        ("beam:num_beams=1", "2 or more"),
        ("beam:num_beams=2.5", "a whole number"),
    ],
)
def test_refusals(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_config(text)


def test_a_comma_or_space_within_a_text_joins_nothing() -> None:
    assert parse_config("var:calibration=my files/a vcd.json").name == "var:calibration=my files/a vcd.json"


def test_the_baseline_comes_first_and_alone() -> None:
    def names(*specs: str, **options: object) -> list[str]:
        return [config.name for config in build_configs(specs, **options)]  # type: ignore[arg-type]

    assert names("vcd") == ["greedy", "vcd"]
    assert names("vcd", baselines=["greedy", "sample"]) == ["greedy", "sample", "vcd"]
    assert names("vcd", decode="beam") == ["beam", "beam+vcd"]
    assert names("vcd", baselines=[]) == ["vcd"]
    with pytest.raises(InvalidParameter, match="baseline is part of a run anyway"):
        names("greedy")
    with pytest.raises(InvalidParameter, match="listed twice"):
        names("vcd", "vcd:alpha=1")
    with pytest.raises(InvalidParameter, match="nothing to run"):
        names(baselines=[])
    with pytest.raises(InputError, match="no decoding 'vcd'"):
        names("m3id", baselines=["vcd"])


SCORES = torch.tensor([2.0, 1.0, 0.0, -1.0, -float("inf")])


def drawn(keys: list[str], **options: float) -> list[int]:
    scores = SCORES.expand(len(keys), -1)
    kept = RowSampler(keys, **options)(torch.zeros(len(keys), 1, dtype=torch.long), scores)
    assert ((kept == 0).sum(-1) == 1).all()
    return kept.argmax(-1).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5}, {"top_p": 0.8}, {"temperature": 2.0, "top_p": 0.9}]
)
def test_tokens_are_drawn_as_often_as_they_are_probable(options: dict[str, float]) -> None:
    n = 20_000
    counted = Counter(drawn([f"key {i}" for i in range(n)], **options))
    expected = SCORES[None]
    if "temperature" in options:
        expected = TemperatureLogitsWarper(options["temperature"])(None, expected)
    if "top_p" in options:
        expected = TopPLogitsWarper(options["top_p"])(None, expected)
    for token, share in enumerate(expected.softmax(-1)[0].tolist()):
        # Five standard deviations of a binomial share; a token without probability never comes
        assert abs(counted[token] / n - share) <= 5 * (share * (1 - share) / n) ** 0.5


def test_a_row_draws_the_same_in_any_company_and_a_new_number_each_time() -> None:
    keys = [f"{i}" for i in range(50)]
    assert drawn(keys) == [drawn([key])[0] for key in keys]
    assert len(set(drawn(keys))) > 1
    draw = RowSampler(["one"])
    flat = torch.zeros(1, 1000)
    assert len({int(draw(flat.long(), flat).argmax()) for _ in range(20)}) > 15


def test_the_edges_of_the_unit_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits, token in ((0, 1), (2**52 - 1, 3)):
        monkeypatch.setattr("random.Random.getrandbits", lambda self, k, bits=bits: bits)
        scores = torch.tensor([[-float("inf"), 3.0, 1.0, 2.0, -float("inf")]])
        assert int(RowSampler(["x"])(scores.long(), scores).argmax()) == token
