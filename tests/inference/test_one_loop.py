"""One function of the package runs generations, so that seeds, clocks, methods and end marks are treated alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from standin import standin
from transformers import LogitsProcessor

import keepsight
from keepsight.demo.world import scenes
from keepsight.errors import NoImageTokens
from keepsight.inference.generation import Generation, dry_run, end_token_ids, generate
from keepsight.source.prompts import prepare

PACKAGE = Path(keepsight.__file__).parent
ALLOWED = {
    "inference/generation.py": "the loop itself",
    "verification/record.py": "writes given tokens and keeps the scores of each step, between hooks of its own",
    "experiments/latency/measure.py": "measures what model.generate costs, without anything around it",
}
"""Files that may call a model's ``generate``, and why."""


def calls(path: Path) -> Iterator[ast.Call]:
    """Calls of a method named ``generate``, and of ``generate`` fetched by ``getattr``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "generate":
            yield node
        elif isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value == "generate":
                yield node


def test_one_file_calls_a_models_generate() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "engines" not in path.relative_to(PACKAGE).parts and any(calls(path))
    }
    # target looks whether a class has a generate of its own, and calls none
    assert found - {"target.py"} == set(ALLOWED)


def test_the_search_finds_calls(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("self.model.generate(**inputs)\ngetattr(model, 'generate')(1)\ngenerate(1)\n")
    assert [call.lineno for call in calls(bad)] == [1, 2]


@pytest.fixture(scope="module")
def made() -> tuple[Any, Any]:
    model, processor = standin()
    return model, prepare(processor, [scene.image() for scene in scenes("val", 2)], "a cat")


class Sees(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, order: list[tuple[str, torch.Tensor]], name: str) -> None:
        self.order, self.name = order, name

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.order.append((self.name, scores.clone()))
        return scores


def test_processors_stand_around_those_of_the_methods(made: tuple[Any, Any]) -> None:
    model, inputs = made
    order: list[tuple[str, torch.Tensor]] = []
    generate(
        model,
        inputs,
        ["m3id:decay=1.0,cutoff=0.0"],
        generation=Generation(max_new_tokens=1),
        first=[Sees(order, "first")],
        processors=[Sees(order, "last")],
    )
    assert [name for name, _ in order] == ["first", "last"]
    plain = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    suppressed = order[0][1] == -torch.inf
    assert torch.allclose(order[0][1][~suppressed], plain.logits[0].float()[~suppressed], atol=1e-4)
    assert not torch.equal(order[0][1], order[1][1])


def test_rows_end_at_their_end_marks(made: tuple[Any, Any]) -> None:
    model, inputs = made
    end = model.generation_config.eos_token_id

    class EndFirst(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if input_ids.shape[1] == inputs["input_ids"].shape[1] + 2:
                scores[0] = torch.full_like(scores[0], -torch.inf).index_fill(0, torch.tensor([end]), 0)
            return scores

    found = generate(model, inputs, generation=Generation(max_new_tokens=5), processors=[EndFirst()])
    assert found.lengths == (3, 5)
    assert found.tokens[0][-1] == end
    assert found.ids.shape == (2, 5)
    assert found.prompt_lengths == tuple(inputs["attention_mask"].sum(-1).tolist())
    assert found.seconds > 0


def test_sampling_starts_from_its_seed_and_leaves_the_random_state(made: tuple[Any, Any]) -> None:
    model, inputs = made
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    said = [
        generate(
            model, inputs, generation=Generation(max_new_tokens=8, sample=True, temperature=5.0, seed=seed)
        ).tokens
        for seed in (1, 1, 2)
    ]
    assert said[0] == said[1] != said[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_dry_run_raises_what_a_method_raises(made: tuple[Any, Any]) -> None:
    model, inputs = made
    dry_run(model, inputs, ["vcd", "vhr"])
    with pytest.raises(NoImageTokens):
        dry_run(model, {"input_ids": torch.tensor([[1, 5]])}, ["m3id"])


@pytest.mark.parametrize(("given", "ends"), [(None, set()), (2, {2}), ([2, 5], {2, 5})])
def test_end_tokens(given: Any, ends: set[int]) -> None:
    model, _ = standin()
    model.generation_config.eos_token_id = given
    assert end_token_ids(model) == ends
