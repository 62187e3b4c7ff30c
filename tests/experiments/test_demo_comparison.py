from __future__ import annotations

import json
from typing import Any

import pytest
from standin import standin

from keepsight import M3ID, VCD, InvalidParameter
from keepsight.demo.splits import UnknownSplit
from keepsight.demo.world import scenes
from keepsight.experiments import demo_comparison as module
from keepsight.experiments.demo_comparison import Comparison, compare, digest
from keepsight.inference.generation import Answers

STRONG = VCD(alpha=3.0, beta=0.0, noise_step=999)


def scripted(monkeypatch: pytest.MonkeyPatch, said: dict[str, list[str]], seconds: dict[str, float]) -> None:
    """Put prepared captions in the place of a model: by spec, in the order of the scenes."""

    def answer(
        model: Any, processor: Any, pictures: list[Any], prompt: str, *methods: Any, **options: Any
    ) -> Any:
        way = methods[0].spec if methods else "greedy"
        yield Answers(tuple(said[way][: len(pictures)]), (10,), (70,), seconds[way])

    monkeypatch.setattr("keepsight.inference.generation.answer", answer)


class Nothing:
    device = "cpu"


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """Two pictures, worked by hand below."""
    first, second = scenes("val", 2)
    absent = next(name for name in ("kite", "banana", "cat") if name not in {*first.names, *second.names})
    there, also = first.names[0], second.names[0]
    said = {
        "greedy": [f"A {there} and a {absent} and a {absent}.", f"A {also} and a {absent}."],
        "vcd": [f"A {there} and a {there}.", f"A {also}."],
    }
    scripted(monkeypatch, said, {"greedy": 2.0, "vcd": 5.0})
    return compare(Nothing(), None, [VCD()], split="val", n=2, batch=2)


def test_worked_figures(worked: Comparison) -> None:
    """Greedy: 3 of 5 mentions invented, cut to (2, 1) mentions: 1 of 3. VCD: 0 of 3."""
    greedy, vcd = worked.to_json()["rows"]
    objects = sum(len(scene.names) for scene in worked.scenes)
    assert (greedy["chair_s"], greedy["chair_i"], greedy["mentions"]) == (1.0, 3 / 5, 2.5)
    assert greedy["recall"] == vcd["recall"] == 2 / objects
    assert (vcd["chair_s"], vcd["chair_i"], vcd["mentions"]) == (0.0, 0.0, 1.5)
    assert (greedy["cost"], vcd["cost"]) == (1.0, 2.5)
    assert (vcd["tokens"], vcd["seconds"]) == (10, 5.0)
    cut = vcd["greedy_cut"]
    assert (cut["chair_s"], cut["chair_i"], cut["mentions"]) == (0.5, 1 / 3, 1.5)
    assert vcd["difference"]["chair_i"]["value"] == pytest.approx(-3 / 5)
    assert vcd["difference_to_greedy_cut"]["chair_i"]["value"] == pytest.approx(-1 / 3)
    low, high = vcd["difference"]["chair_i"]["ci"]
    assert low == pytest.approx(-2 / 3)  # both draws the first picture
    assert high == pytest.approx(-1 / 2)  # both draws the second one


def test_a_model_that_names_nothing_has_no_rate_and_valid_json(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {"greedy": ["Nothing.", "Nothing."], "vcd": ["", ""]}, {"greedy": 1.0, "vcd": 1.0})
    result = compare(Nothing(), None, [VCD()], split="val", n=2, batch=2).to_json(captions=True)
    assert [row["chair_i"] for row in result["rows"]] == [None, None]
    assert result["rows"][1]["difference"]["chair_i"] == {"value": None, "ci": [None, None]}
    json.dumps(result, allow_nan=False)


def test_a_batch_size_changes_nothing_but_the_clock() -> None:
    model, processor = standin()
    found = [compare(model, processor, [STRONG], n=5, batch=size, max_new_tokens=8) for size in (2, 5)]
    first, second = (
        [[row.caption for row in entry.report.captions] for entry in one.entries] for one in found
    )
    assert first == second
    assert first[0] != first[1]


def test_every_caption_is_reported_once() -> None:
    model, processor = standin()
    moves: list[int] = []
    compare(model, processor, [STRONG, M3ID()], n=5, batch=2, max_new_tokens=2, advance=moves.append)
    assert sum(moves) == 5 * 3


def test_a_method_that_is_off_equals_greedy() -> None:
    model, processor = standin()
    greedy, off = compare(model, processor, [STRONG.off()], n=3, max_new_tokens=8).to_json()["rows"]
    assert [greedy[name] for name in module.FIGURES] == [off[name] for name in module.FIGURES]
    assert off["difference"]["chair_i"] == {"value": 0.0, "ci": [0.0, 0.0]}


@pytest.mark.parametrize("options", [{"n": 0}, {"batch": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidParameter):
        compare(Nothing(), None, [], **options)  # type: ignore[arg-type]


def test_training_pictures_are_no_split_to_report_on() -> None:
    with pytest.raises(UnknownSplit, match="no split 'train'"):
        compare(Nothing(), None, [], split="train")


def test_digest_is_sha256(tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
