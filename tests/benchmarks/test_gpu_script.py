"""The script for a machine with a GPU, run on the CPU with a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))

import measure  # noqa: E402


def test_a_dry_run_verifies_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "FEW", ("m3id", "vhr"))
    monkeypatch.setattr(measure, "TIMED", ("m3id",))
    assert measure.main(["--dry-run", "--out", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bench-tiny.json", "verify-tiny-bfloat16.json", "verify-tiny-float32.json"]
    found = json.loads((tmp_path / names[1]).read_text(encoding="utf-8"))
    assert (found["dtype"], found["wrong"], found["seed"]) == ("bfloat16", 0, 0)
    assert any(one["compared"].startswith("padded batch") for one in found["findings"])
    assert {row["way"] for row in json.loads((tmp_path / names[0]).read_text(encoding="utf-8"))["rows"]} >= {
        "separate"
    }
    assert "0 WRONG" in capsys.readouterr().out


def test_steps_that_do_not_fit_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure.main(["--dry-run", "--out", str(tmp_path), "--minutes", "0.1"]) == 0
    assert capsys.readouterr().out.count("left out") == 3
    assert not list(tmp_path.iterdir())


def test_a_fault_makes_the_exit_code_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight.engines.hf import attention

    right = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **kwargs: right(*args, **kwargs) * 1.5)
    monkeypatch.setattr(measure, "FEW", ("pai:first_layer=0",))
    monkeypatch.setattr(measure, "TIMED", ())
    assert measure.main(["--dry-run", "--out", str(tmp_path)]) == 1


def test_the_padded_batch_is_the_rows() -> None:
    subject = measure.build(measure.Source(shape=measure.TINY, image_tokens=16))
    both, rows = measure.padded(subject)
    for i, row in enumerate(rows):
        there = both["attention_mask"][i] == 1
        assert torch.equal(both["input_ids"][i][there], row["input_ids"][0])
        assert torch.equal(both["pixel_values"][i : i + 1], row["pixel_values"])
        assert int((row["input_ids"] == 32000).sum()) == 16
    assert len(rows[0]["input_ids"][0]) > len(rows[1]["input_ids"][0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes")
def test_without_a_gpu_it_is_said() -> None:
    script = ROOT / "benchmarks" / "gpu" / "run"
    found = subprocess.run(
        [str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )
    assert found.returncode == 2
    assert "no CUDA device" in found.stderr
