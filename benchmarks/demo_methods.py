"""Compares methods on the demo world by the code of ``keepsight run`` and ``keepsight compare``, for the other benchmarks.

Unlike the command line, it takes a model in memory, which a benchmark may have changed, and methods that have no name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepsight.demo.model import WEIGHTS
from keepsight.eval.stats.bootstrap import Difference
from keepsight.experiments.compare import Comparison, Figure, compare
from keepsight.experiments.decoding_config import GREEDY, DecodingConfig
from keepsight.experiments.manifest import RunConfig
from keepsight.experiments.open_benchmark import demo_benchmark
from keepsight.experiments.runner import execute
from keepsight.files import file_digest
from keepsight.method import Method

RATES = ("chair_s", "chair_i", "recall")
FIGURES = (*RATES, "precision", "f1", "length", "mentions")
LONGEST, BATCH = 64, 32
"""The largest number of tokens of a caption, and the number of pictures that are captioned together."""


def compare_methods(
    model: Any, processor: Any, methods: Sequence[Method], *, split: str, n: int, weights: str | None = None
) -> Comparison:
    """Compare greedy search with each of ``methods`` on the first ``n`` scenes of ``split``; the run is not kept.

    Args:
        model: a model in memory.
        processor: its processor.
        methods: the methods; each is compared by itself.
        split: the name of a split of the demo world.
        n: the number of scenes.
        weights: the digest of the model's weights, as ``weights_digest`` gives it; None where they were changed.
    """
    plan = RunConfig(
        bench=demo_benchmark("chair", split, n),
        ways=(GREEDY, *(DecodingConfig(GREEDY.strategy, (method,)) for method in methods)),
        max_new_tokens=LONGEST,
        batch=BATCH,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = execute(
            plan, model, processor, Path(folder) / "run", weights={"sha256": weights, "revision": None}
        )
        return compare([run])


def weights_digest() -> str:
    """Returns the SHA-256 of the packaged demo weights."""
    return file_digest(WEIGHTS / "model.safetensors")


def as_result(comparison: Comparison) -> dict[str, Any]:
    """Returns a comparison in the form of ``benchmarks/results``; rates are fractions in [0, 1]."""
    manifest = comparison.merged.runs[0].manifest
    # A run that is not interrupted has one session.
    session = manifest["sessions"][0]
    return {
        "model": manifest["model"],
        "split": manifest["bench"]["split"],
        "n": len(comparison.merged.ids),
        "seed": manifest["seed"],
        "rows": _rows(comparison),
        "metric": comparison.rule,
        "bootstrap": {"resamples": comparison.resamples, "seed": comparison.seed, "level": 0.95},
        "cost": "wall seconds of generation over those of greedy in the same run, batches interleaved",
        "batch": manifest["batch"],
        "weights_sha256": manifest["weights"]["sha256"],
        "hardware": session["hardware"],
        "versions": session["versions"],
    }


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the figures of greedy search and of each method."""
    rows = []
    for row in comparison.rows:
        answered = comparison.merged.runs[0].answers(row.method)
        found: dict[str, Any] = {
            "method": row.method,
            **_figures(row.figures),
            "cost": row.cost.relative_seconds,
            "seconds": sum(answer.seconds or 0.0 for answer in answered),
            "tokens": sum(answer.tokens or 0 for answer in answered),
        }
        # Greedy search itself has neither a difference nor a control.
        if row.differences is not None and row.control is not None:
            found["difference"] = differences(row.differences)
            found["greedy_cut"] = _figures(row.control.figures)
            found["difference_to_greedy_cut"] = differences(row.control.differences)
        rows.append(found)
    return rows


def differences(found: Mapping[str, Difference]) -> dict[str, Any]:
    """Returns the differences of the rates, with intervals."""
    return {name: {"value": found[name].value, "ci": [found[name].low, found[name].high]} for name in RATES}


def _figures(found: Mapping[str, Figure]) -> dict[str, Any]:
    """Returns the values of the figures, with intervals where there are any."""
    intervals = {name: found[name].ci for name in FIGURES}
    return {
        **{name: found[name].value for name in FIGURES},
        "ci": {name: None if ci is None else list(ci) for name, ci in intervals.items()},
    }
