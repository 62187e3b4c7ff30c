"""The run on a GPU: what a dry run writes and says, how it keeps to its time, and what the script asks of a machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import measure

import keepsight.verification
from keepsight.verification import Finding, Report, Verdict

SCRIPT = Path(measure.__file__).with_name("run")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method in one precision is verified, and one is timed."""
    whole = measure.dry_plan()
    monkeypatch.setattr(measure, "dry_plan", lambda: replace(whole, methods=("vhr",)))
    monkeypatch.setattr(measure, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(measure, "BENCHED", ("m3id",))


@pytest.mark.usefixtures("small")
def test_a_dry_run_verifies_measures_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(measure.RESULTS.rglob("*"))
    assert measure.main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert sorted(measure.RESULTS.rglob("*")) == before
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "verify-tiny-bfloat16.json", "bench-tiny-batch1.json", "bench-tiny-batch2.json", "summary.json",
    }  # fmt: skip
    (report,) = read(out / "verify-tiny-bfloat16.json")["reports"]
    compared = {one["compared"]: one["verdict"] for one in report["findings"]}
    assert report["dtype"] == "bfloat16"
    assert report["wrong"] == 0
    assert any(what.startswith("padded batch, attention in") for what in compared)
    rows = read(out / "bench-tiny-batch2.json")["rows"]
    assert [(row["way"], row["batch"]) for row in rows] == [("separate", 2), ("fused", 2)]
    summary = read(out / "summary.json")
    assert [one["ended"] for one in summary["steps"]] == ["done"] * 3
    assert summary["seed"] == 0
    assert summary["machine"]["versions"]["torch"] == torch.__version__
    said = capsys.readouterr().out
    assert "0 WRONG; 0 steps failed" in said
    assert "left out for want of time: nothing" in said


@pytest.mark.usefixtures("small")
def test_anything_wrong_is_named_and_makes_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding(
        method="vhr", compared="off", verdict=Verdict.WRONG, difference=1.0, reason="it is planted"
    )

    def planted(model: Any, *_: Any, **__: Any) -> Report:
        return Report(
            model_class="A", family="a", dtype="bfloat16", device="cpu", attention=None, versions={}, prompt=1, tokens=2,
            rounding=0.0, findings=[finding],
        )  # fmt: skip

    monkeypatch.setattr(keepsight.verification, "verify_inputs", planted)
    assert measure.main(["--dry-run", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "WRONG verify-tiny-bfloat16, vhr, off: it is planted" in said
    assert "1 comparisons, 1 WRONG" in said
    assert read(tmp_path / "summary.json")["exit_code"] == 1


def test_a_step_is_expected_to_take_a_fifth_more_than_the_slowest_so_far() -> None:
    now = 0.0
    budget = measure.Budget(seconds=100, guesses={"bench": 30}, now=lambda: now)
    for work, share, fits in ((3, 1.0, True), (4, 1.0, False), (1, 0.3, True), (1.1, 0.3, False)):
        assert budget.fits("bench", work, share) is fits
    budget.took("bench", 2, 20)
    budget.took("bench", 1, 5)
    assert budget.expected("bench", 3) == pytest.approx(36)
    now = 65.0
    assert not budget.fits("bench", 3)


def test_what_does_not_fit_is_left_out_and_what_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    budget = measure.Budget(seconds=10, guesses={"verify": 4}, now=lambda: now[0])
    run = measure.Run(out=tmp_path, machine={}, budget=budget)

    def taking(seconds: float, error: BaseException | None = None) -> Callable[[], str]:
        def do() -> str:
            now[0] += seconds
            if error is not None:
                raise error
            return "well"

        return do

    run.step("one", "verify", 1, taking(3))
    run.step("two", "verify", 1, taking(1, ValueError("no such thing\nand more")))
    run.step("three", "verify", 1, taking(1, measure.OutOfTime()))
    run.step("four", "verify", 2, taking(1))
    assert [one["ended"] for one in run.steps] == ["done", "failed", "out of time", "left out"]
    lines, code = measure.summary(run)
    assert code == 1
    assert "FAILED two: ValueError: no such thing" in lines
    assert "left out for want of time: three, four" in lines
    assert "four: left out, about 7 s, and 5 s were left for it" in capsys.readouterr().out


def test_the_alarm_rings_in_the_midst_of_a_step_that_catches_exceptions() -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(10)
            except Exception:
                continue

    with pytest.raises(measure.OutOfTime), measure.alarm(0.01):
        stubborn()


def test_the_second_row_of_the_batch_is_shorter_and_padded_on_the_left() -> None:
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [15, 16, 17, 18]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.long),
        "pixel_values": torch.arange(4.0)[:, None],
    }
    both, (one, other) = measure.padded(inputs, dropped=1)
    assert both["input_ids"].tolist() == [[5, 6, 7, 8], [0, 15, 16, 17]]
    assert both["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert one["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert other["input_ids"].tolist() == [[15, 16, 17]]
    assert other["attention_mask"].tolist() == [[1, 1, 1]]
    assert (one["pixel_values"].flatten().tolist(), other["pixel_values"].flatten().tolist()) == (
        [0, 1],
        [2, 3],
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--dry-run", "--out", str(measure.RESULTS / "gpu")], "outside benchmarks/results"),
        (["--dry-run", "--minutes", "0.1"], "between 0.5 and 1440"),
    ],
)
def test_bad_options_are_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        measure.main(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_no_device_and_results_of_an_earlier_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measure.main(["--out", str(tmp_path)]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
    (tmp_path / "bench-1b-batch1.json").write_text("{}")
    assert measure.main(["--dry-run", "--out", str(tmp_path)]) == 2
    assert "earlier run (bench-1b-batch1.json)" in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the script needs Python 3.11")
def test_what_is_missing_is_found_among_the_project_s_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu import missing

    assert list(missing.requirements(missing=True)) == []
    names = {text.split(">")[0] for text in missing.requirements(missing=False)}
    assert {"transformers", "accelerate", "typer"} <= names
    assert "torch" not in names
    monkeypatch.setattr(missing, "version", lambda name: "0.1")
    assert set(missing.requirements(missing=True)) == set(missing.requirements(missing=False))


def script(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *given], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--wheels"], "--wheels needs a value"),
        (["--python=no-such-python"], "there is no no-such-python here: name a Python with --python"),
    ],
)
def test_the_script_says_what_it_lacks(given: list[str], said: str) -> None:
    done = script(*given)
    assert done.returncode == 2
    assert done.stderr.strip() == said


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="the script needs Python 3.11")
def test_the_script_carries_out_a_whole_dry_run(tmp_path: Path) -> None:
    done = script("--python", sys.executable, "--dry-run", "--out", str(tmp_path / "with a space"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 WRONG; 0 steps failed" in done.stdout
    assert len(list((tmp_path / "with a space").glob("verify-tiny-*.json"))) == 3
