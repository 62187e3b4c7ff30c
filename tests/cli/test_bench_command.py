"""``keepsight bench``: what it prints and writes, and what it refuses before anything is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., Any]

QUICK = ("--threads", 1, "--repeats", 1, "--new-tokens", 8, "--clock", "cpu", "--no-memory")


def test_writes_a_table_figures_and_a_plot(run: Run, demo_model: Path, tmp_path: Path) -> None:
    figures, table, plot = tmp_path / "b.json", tmp_path / "b.md", tmp_path / "b.png"
    done = run(
        "bench", "demo", *QUICK, "--method", "m3id", "--batch", "1,2",
        "--json", figures, "--markdown", table, "--plot", plot,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "guidance_scale" in done.stdout
    found = json.loads(figures.read_text())
    assert [(row["batch"], row["way"]) for row in found["rows"]] == [
        (batch, way) for batch in (1, 2) for way in ("naive", "separate", "fused", "cfg", "eager")
    ]
    row = found["rows"][2]
    assert {"method", "batch", "fused", "prefill_ratio", "decode_ratio", "memory_ratio"} <= row.keys()
    assert row["fused"] is True
    assert row["memory_ratio"] is None
    assert found["settings"]["dtype"] == "float32"
    assert found["hardware"]["threads"] == 1
    assert table.read_text().count("\n| ") == 1 + 10
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_random_weights_over_lengths(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from keepsight.experiments.latency import subjects

    tiny = {
        "text": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "vocab_size": 32064},
        "vision": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    }  # fmt: skip
    monkeypatch.setitem(subjects.SHAPES, "130m", tiny)
    figures = tmp_path / "b.json"
    done = run(
        "bench", "--shape", "130m", *QUICK, "--method", "vcd", "--fused", "on", "--peer", "none", "--dtype", "bfloat16",
        "--image-tokens", "16,32", "--json", figures,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(figures.read_text())
    assert [(row["image_tokens"], row["prompt_tokens"]) for row in found["rows"]] == [(16, 56), (32, 72)]
    assert found["settings"]["dtype"] == "bfloat16"
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_a_peak_is_measured_in_a_process_of_its_own(run: Run, demo_model: Path, tmp_path: Path) -> None:
    figures = tmp_path / "b.json"
    done = run(
        "bench", demo_model, "--threads", 1, "--repeats", 1, "--new-tokens", 8, "--method", "sla", "--peer", "none",
        "--json", figures,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = json.loads(figures.read_text())["rows"]
    assert row["peak_mib"] > 0
    assert row["plain_peak_mib"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["other/model", "--shape", "1b"], "not both"),
        (["--shape", "70b"], "no such shape; did you mean '7b'"),
        (["--shape", "1b", "--image-tokens", "577"], "577 visual tokens cannot be cut"),
        (["--shape", "1b", "--image-tokens", "0"], "must be different whole numbers, 1 or more"),
        (["--image-tokens", "576"], "--image-tokens is for --shape"),
        (["--new-tokens", "4"], "new_tokens=4 must be different whole numbers, 8 or more"),
        (["--new-tokens", "many"], "--new-tokens 'many' must be whole numbers"),
        (["--batch", "1,1"], "batch=1,1 must be different"),
        (["--batch", "1,"], "--batch '1,' must be whole numbers"),
        (["--repeats", "0"], "1 or more"),
        (["--threads", "0"], "1 or more"),
        (["--method", "vdc"], "did you mean 'vcd'"),
        (["--method", "vcd:alpha=-1"], "alpha=-1.0 must be"),
        (["--peer", "naiv"], "did you mean 'naive'"),
        (["--fused", "yes"], "fused 'yes'"),
        (["--cache", "statik"], "did you mean 'static'"),
        (["--clock", "sun"], "clock 'sun'"),
        (["--dtype", "float8"], "dtype 'float8'"),
        (["--device", "gpu"], "no such device"),
        (["--device", "mps"], "cpu and cuda only"),
        (["--plot", "x.pdf"], "the plot is a PNG: name x.png"),
        (["--json", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_refuses(refused: Callable[..., str], no_model: None, arguments: list[str], said: str) -> None:
    assert said in refused("bench", *arguments)


def test_refuses_cuda_where_there_is_none(
    refused: Callable[..., str], no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no CUDA device here" in refused("bench", "--shape", "7b", "--device", "cuda")


def test_refuses_a_plot_without_matplotlib(
    refused: Callable[..., str], no_model: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install -e '.[plots]'" in refused("bench", "--plot", tmp_path / "x.png")


def test_one_output_for_two_things_is_refused(
    refused: Callable[..., str], no_model: None, tmp_path: Path
) -> None:
    out = tmp_path / "x.md"
    assert "written twice" in refused("bench", "--json", out, "--markdown", out)


def test_refuses_what_a_method_needs_before_measuring(refused: Callable[..., str], demo_model: Path) -> None:
    assert "calibrat" in refused("bench", "demo", *QUICK, "--method", "var")
