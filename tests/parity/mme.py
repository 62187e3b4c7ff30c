"""MME: the figures of two models' answers to the existence task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from keepsight.eval.mme import read_task, score_task
from parity._row import Row


def differences(shared: Path) -> Iterator[Row]:
    folder = shared / "data" / "parity" / "mme"
    for name, official in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items():
        report = score_task(read_task(folder / name), resamples=0)
        ours = {
            "n": report.n,
            "acc": 100 * report.acc,
            "acc_plus": 100 * report.acc_plus,
            "score": report.score,
            "other": report.unparsed,
        }
        wrong = sum(abs(ours[key] - value) > 1e-9 for key, value in official.items())
        yield Row(str((folder / name).relative_to(shared)), "figures", len(official), wrong)
