"""How long products of a few rows with a large matrix take beside one row: the ordinary way, and turned round.

    python benchmarks/products.py --json benchmarks/results/products-cpu.json

``keepsight/thin.py`` turns them. float32 on the CPU, one thread, CPU seconds: the best of some rounds, over matrices that
together do not fit a cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from keepsight.engines.hf.thin import ROWS, product, slow_here

SHAPES = (
    (768, 768),
    (768, 2048),
    (1024, 2048),
    (2048, 768),
    (2048, 2048),
    (2048, 5632),
    (5632, 2048),
    (768, 32064),
)
"""Inputs and outputs: the matrices of the 130m and 1b shapes, and two more."""
BYTES = 160 << 20
ROUNDS = 7


def seconds(act: Callable[[Any, Any], Any], matrices: list[Any], x: Any) -> float:
    """Of one product."""
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first is a warm-up that hardly wins
        begun = time.process_time()
        for matrix in matrices:
            act(x, matrix)
        best = min(best, time.process_time() - begun)
    return best / len(matrices)


def measure() -> list[dict[str, Any]]:
    found = []
    for inputs, outputs in SHAPES:
        count = max(2, BYTES // (4 * inputs * outputs))
        matrices = [torch.randn(outputs, inputs) for _ in range(count)]
        one = seconds(torch.nn.functional.linear, matrices, torch.randn(1, inputs))
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            found.append(
                {
                    "inputs": inputs, "outputs": outputs, "rows": rows, "one_row_ms": 1000 * one,
                    "ordinary": seconds(torch.nn.functional.linear, matrices, x) / one,
                    "turned": seconds(product, matrices, x) / one,
                }
            )  # fmt: skip
            row = found[-1]
            print(
                f"{inputs:5} → {outputs:5}, {rows} rows: {row['ordinary']:.2f}×, turned {row['turned']:.2f}×",
                flush=True,
            )
    return found


def table(result: dict[str, Any]) -> str:
    lines = ["| inputs → outputs | rows | ordinary | turned round |", "|---|---|---|---|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['inputs']} → {row['outputs']} | {row['rows']} | {row['ordinary']:.2f}× | {row['turned']:.2f}× |"
        )
    versions = result["versions"]
    facts = (
        f"Times one row's; float32, {result['hardware']['cpu']}, 1 thread, best of {ROUNDS} rounds of CPU seconds; torch"
        f" {versions['torch']}, Keepsight {versions['keepsight']}."
    )
    return "\n".join([*lines, "", facts]) + "\n"


def main() -> None:
    from keepsight.experiments.environment import hardware, versions
    from keepsight.files import as_json, check_writable, write_whole

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.json:
        check_writable(chosen.json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = measure()
    result = {"rows": rows, "turned_here": slow_here(), "hardware": hardware("cpu"), "versions": versions()}
    if chosen.json:
        write_whole(chosen.json, as_json(result))


if __name__ == "__main__":
    main()
