"""The benchmark on skipped amateurs: what it counts, what it measures on the demo model, and its command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import amateur_skipping
import pytest
import torch
from amateur_skipping import Steps, measure_skipping, table

from keepsight.errors import InputError


@pytest.mark.parametrize("skipping", [False, True])
def test_steps_count_what_was_needed_and_what_ran(skipping: bool) -> None:
    expert = torch.tensor([[9.0, 0.0], [9.0, 0.0]])
    steps = Steps(
        needed=lambda step: step > 0,
        decided=lambda expert, step: torch.ones(len(expert), dtype=torch.bool),
        combine=lambda expert, amateur, step: expert - step,
        skipping=skipping,
    )
    assert [steps.needed(step) for step in range(3)] == [False, True, True]
    assert steps.decided(expert, 1).tolist() == [skipping, skipping]
    assert torch.equal(steps.combine(expert, None, 1), expert - 1)
    steps.combine(expert, expert, 2)
    assert (steps.steps, steps.asked) == (2, 1)


def test_skipping_on_the_demo_model() -> None:
    (row,) = measure_skipping(["m3id:gate=0.9"], pictures=3, new=24, clock="cpu")
    assert row["n"] == 3
    assert 0 < row["skipped"] < 1
    assert row["same_tokens"]
    assert row["ratio"]["plain"] == 1


def test_a_method_without_an_amateur_is_refused() -> None:
    with pytest.raises(InputError, match="no amateur"):
        measure_skipping(["vhr"], pictures=2, new=8)


def test_the_command_writes_what_the_table_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "skipping.json"
    monkeypatch.setattr(amateur_skipping, "METHODS", ("vcd",))
    monkeypatch.setattr(
        sys, "argv", ["x", "--pictures", "2", "--new-tokens", "8", "--clock", "cpu", "--json", str(out)]
    )
    threads = torch.get_num_threads()
    try:
        amateur_skipping.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert capsys.readouterr().out == table(found)
    assert found["settings"] == {"pictures": 2, "split": "val", "clock": "cpu", "new_tokens": 8}
    assert [row["method"] for row in found["skipping"]] == ["vcd"]


@pytest.mark.parametrize("option", ["--pictures", "--new-tokens"])
def test_the_command_refuses_nothing_to_do(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(sys, "argv", ["x", option, "0"])
    with pytest.raises(SystemExit):
        amateur_skipping.main()
