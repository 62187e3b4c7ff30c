from __future__ import annotations

import functools
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keepsight import GroundingRecorder, InvalidParameter, ground
from keepsight.demo.model import PROMPT, load
from keepsight.demo.world import scenes
from keepsight.eval.chair.score import mentions
from keepsight.grounding import (
    AGGREGATE,
    AGGREGATES,
    SCORE,
    SCORES,
    THRESHOLD,
    WEIGHT,
    Grounding,
    Nouns,
    TokenGrounding,
    figures,
    teacher_force,
)
from keepsight.grounding.scores import aggregated, joined
from keepsight.inference.detokenizer import until_end
from keepsight.source.prompts import prepare

ROOT = Path(__file__).parent.parent.parent


def test_worked_figures() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2); w = 1 gives p²/q = (1, 1/4, 1/8), in all 11/8."""
    log = math.log
    expert = torch.tensor([0.5, 0.25, 0.25]).log() + 3.0  # scores need not be normalised
    amateur = torch.tensor([0.25, 0.25, 0.5]).log()
    found = figures(expert, amateur, torch.tensor(0), weight=1.0)
    wanted = [log(0.5), log(0.25), log(8 / 11), 1.5 * log(2), 0.25 * log(2)]
    assert torch.allclose(torch.stack(list(found)), torch.tensor(wanted), atol=1e-6)
    other = figures(expert, amateur, torch.tensor(2), weight=1.0)
    assert other.contrast.item() == pytest.approx(log(1 / 11))
    assert (other.with_image - other.without_image).item() == pytest.approx(-log(2))


logits = hnp.arrays("float32", (3, 6), elements=st.floats(-8, 8, width=32)).map(torch.from_numpy)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(logits, logits, st.floats(0, 2))
def test_laws_of_the_figures(expert: torch.Tensor, amateur: torch.Tensor, weight: float) -> None:
    chosen = torch.tensor([0, 3, 5])
    found = figures(expert, amateur, chosen, weight=weight)
    assert all(column.shape == (3,) and column.dtype == torch.float32 for column in found)
    assert (found.with_image <= 0).all()
    assert (found.contrast <= 1e-6).all()
    assert (found.divergence >= -1e-4).all()
    assert ((found.entropy >= -1e-5) & (found.entropy <= math.log(6) + 1e-5)).all()
    same = figures(expert, expert, chosen, weight=weight)
    assert torch.allclose(same.contrast, same.with_image, atol=1e-5)  # no difference, nothing to contrast
    assert torch.allclose(same.divergence, torch.zeros(3), atol=1e-5)
    off = figures(expert, amateur, chosen, weight=0.0)
    assert torch.allclose(off.contrast, off.with_image, atol=1e-6)
    shifted = figures(expert + 5, amateur - 3, chosen, weight=weight)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, shifted, strict=True))


def test_ruled_out_tokens_are_no_trouble() -> None:
    expert = torch.tensor([0.0, -math.inf, 0.0])
    found = figures(expert, torch.tensor([0.0, 0.0, 0.0]), torch.tensor(0))
    assert found.entropy.item() == pytest.approx(math.log(2))
    assert found.divergence.item() == pytest.approx(math.log(1.5))
    assert found.contrast.item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_out_of_its_range_is_refused(weight: float) -> None:
    with pytest.raises(InvalidParameter, match="weight"):
        figures(torch.zeros(3), torch.zeros(3), torch.tensor(0), weight=weight)


def token(span: tuple[int, int], with_image: float, without_image: float, **more: float) -> TokenGrounding:
    rest = {"contrast": 0.0, "entropy": 0.0, "divergence": 0.0} | more
    return TokenGrounding(id=7, span=span, with_image=with_image, without_image=without_image, **rest)


MADE = Grounding(
    "a stop sign, dogs",
    (
        token((0, 1), -0.1, -0.1),
        token((1, 6), -1.0, -3.0, contrast=-0.5, entropy=0.75, divergence=0.25),
        token((6, 11), -2.0, -1.0, contrast=-0.25, entropy=0.25, divergence=0.5),
        token((11, 12), -9.0, -9.0),
        token((12, 17), -4.0, -1.0, contrast=-6.0, entropy=2.0, divergence=1.0),
        token((17, 17), -8.0, -8.0),
    ),
)


@pytest.mark.parametrize(
    ("score", "aggregate", "supports"),
    [
        ("difference", "first", (2.0, -3.0)),
        ("difference", "mean", (0.5, -3.0)),
        ("difference", "min", (-1.0, -3.0)),
        ("difference", "sum", (1.0, -3.0)),
        ("likelihood", "mean", (-1.5, -4.0)),
        ("contrast", "mean", (-0.375, -6.0)),
        ("negative_entropy", "mean", (-0.5, -2.0)),
        ("divergence", "first", (0.25, 1.0)),
    ],
)
def test_words_by_hand(score: str, aggregate: str, supports: tuple[float, float]) -> None:
    sign, dogs = MADE.words(score=score, aggregate=aggregate)
    assert (sign.word, sign.object, sign.tokens) == ("stop sign", "stop sign", (1, 2))
    assert (dogs.word, dogs.object, dogs.tokens) == ("dogs", "dog", (4,))
    assert (sign.support, dogs.support) == supports
    assert (sign.with_image, sign.without_image, sign.difference) == (-3.0, -4.0, 1.0)


def test_a_score_is_what_the_field_of_its_name_holds() -> None:
    one = MADE.tokens[1]
    assert {score: one.support(score) for score in SCORES} == {
        "contrast": -0.5,
        "difference": 2.0,
        "likelihood": -1.0,
        "negative_entropy": -0.75,
        "divergence": 0.25,
    }
    assert all(one.support(score) == getattr(one, score) for score in SCORES)
    with pytest.raises(InvalidParameter, match="did you mean 'negative_entropy'"):
        MADE.words(score="entropy")


def test_words_of_a_list_and_names_that_do_not_exist() -> None:
    [sign] = MADE.words(Nouns.of(["signs"]), score="difference")
    assert (sign.word, sign.object, sign.tokens, sign.support) == ("sign", "signs", (2,), -1.0)
    with pytest.raises(InvalidParameter, match="did you mean 'contrast'"):
        MADE.words(score="contrasts")
    with pytest.raises(InvalidParameter, match="known: first, mean, min, sum"):
        MADE.words(aggregate="product")
    assert {len({aggregated([0.5], way)}) for way in AGGREGATES} == {1}


class TestOnTheDemoModel:
    def test_a_caption_given_as_text_is_judged_as_when_it_was_written(self) -> None:
        model, processor = load()
        shown = scenes("val-shifted", 6)
        inputs = prepare(processor, [scene.image() for scene in shown], PROMPT)
        recorder = GroundingRecorder(model, inputs)
        written = model.generate(**inputs, max_new_tokens=40, do_sample=False, logits_processor=[recorder])
        live = recorder.read(written, processor)
        end = processor.tokenizer.eos_token_id
        for scene, heard in zip(shown, live, strict=True):
            given = ground(model, processor, scene.image(), PROMPT, f" {heard.text}\n")
            assert given.text == heard.text
            assert [one.id for one in given.tokens] == [one.id for one in heard.tokens if one.id != end]
            words, again = heard.words(), given.words()
            assert [(one.word, one.object, one.span) for one in words] == [
                (heard.text[slice(*one.span)], one.object, one.span) for one in mentions(heard.text)
            ]
            for one, other in zip(words, again, strict=True):
                assert (one.word, one.tokens) == (other.word, other.tokens)
                assert one.support == pytest.approx(other.support, abs=1e-4)
                assert one.difference == pytest.approx(other.difference, abs=1e-4)
                spelt = processor.tokenizer.decode([heard.tokens[at].id for at in one.tokens])
                assert spelt.strip() == one.word
        assert sum(len(one.words()) for one in live) > 12

    def test_a_wrong_word_is_less_supported_than_the_right_one(self) -> None:
        model, processor = load()
        at = next(one for one in scenes("test", 50) if one.context == "office" and "laptop" in one.names)
        absent = "oven"
        assert absent not in at.names
        right, wrong = (
            ground(model, processor, at.image(), PROMPT, f"{start} with {noun}.").words()[0]
            for start, noun in (("An office", "a laptop"), ("An office", f"an {absent}"))
        )
        assert right.support > THRESHOLD > wrong.support
        assert right.with_image > wrong.with_image

    def test_a_caption_that_is_empty_is_refused(self) -> None:
        model, processor = load()
        with pytest.raises(ValueError, match="empty"):
            ground(model, processor, scenes("val", 1)[0].image(), PROMPT, " ")

    def test_answers_must_fit_the_prompts(self) -> None:
        model, processor = load()
        inputs = prepare(processor, [scenes("val", 1)[0].image()], PROMPT)
        for answers in ([], [[]], [[5], [6]]):
            with pytest.raises(ValueError, match="1 prompts need as many answers"):
                teacher_force(model, inputs, answers)


@functools.cache
def benchmark() -> Any:
    path = ROOT / "benchmarks" / "grounding.py"
    spec = importlib.util.spec_from_file_location("benchmark_grounding", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


class TestWhatTheBenchmarkFound:
    def test_defaults_are_what_the_val_splits_chose(self) -> None:
        found = json.loads((ROOT / "benchmarks/results/grounding.json").read_text(encoding="utf-8"))
        wanted = {"score": SCORE, "weight": WEIGHT, "aggregate": AGGREGATE, "threshold": THRESHOLD}
        assert found["chosen"] == wanted
        assert found["n"] >= 1000

    def test_the_page_shows_what_was_measured(self) -> None:
        script = benchmark()
        found = json.loads(script.RESULT.read_text(encoding="utf-8"))
        page = (ROOT / "docs" / "grounding.md").read_text(encoding="utf-8")
        assert script.table(found) in page

    def test_cases_and_choice_by_hand(self) -> None:
        """The rule prefers what parts the two kinds, on the splits together, and cuts between them."""
        script = benchmark()
        good, bad = ("contrast", 0.5, "mean"), ("likelihood", None, "mean")

        def case(image: int, invented: bool, support: float) -> Any:
            place = {("position", None, None): -float(invented)}
            return script.Case(image, invented, 1, {bad: -support, good: support, **place})

        val = [case(0, False, -0.25), case(1, True, -2.0)]
        assert script.choose(val, [*val, case(2, True, -1.0)]) == (good, pytest.approx(-0.62, abs=0.011))

    def test_a_case_is_what_ground_says(self) -> None:
        script = benchmark()
        model, processor = load()
        [shown] = scenes("test-shifted", 1)
        found = script.cases(model, processor, "test-shifted", 1, script.GREEDY, 0)
        inputs = prepare(processor, [shown.image()], PROMPT)
        written = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]
        ids = until_end(written[inputs["input_ids"].shape[1] :].tolist(), processor.tokenizer.eos_token_id)
        [[read]] = teacher_force(model, inputs, [ids])
        whole = joined(processor.tokenizer, ids, read)
        for score in SCORES:
            words = whole.words(score=score, aggregate="sum")
            key = (score, WEIGHT if score == "contrast" else None, "sum")
            assert [one.support[key] for one in found] == pytest.approx([one.support for one in words])
            assert [one.invented for one in found] == [one.object not in shown.names for one in words]
