"""Which method runs on which family? ``OMP_NUM_THREADS=1 python benchmarks/families.py``

Builds a tiny random model of every type that the installed transformers maps to image-text-to-text generation, and of some
variants, runs every check of ``keepsight verify`` with every method on each, and writes
``benchmarks/results/families.json``. No published checkpoint is loaded: this is about the code of the families, and says
nothing about how much a method helps.

Takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tiny models are those of the tests

import mapped  # noqa: E402
from mapped_methods import SPECS, TOKENS, outcomes, why_no_batch  # noqa: E402

from keepsight.experiments.environment import hardware, versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "families.json"


def measured(name: str) -> dict[str, Any]:
    """The outcome of every method on one type or variant, or why no tiny model of it can be made."""
    row: dict[str, Any] = {"model_class": mapped.MAPPED[name.partition(":")[0]]}
    try:
        mapped.build(name)
    except mapped.NotBuilt as error:
        return {**row, "not_built": str(error)}
    found = {
        spec: {
            "result": one.result.value,
            **({"share_of_rounding": one.nearest} if one.nearest else {}),
            **({"reasons": list(one.reasons)} if one.reasons else {}),
            **({"left_out": list(one.left_out)} if one.left_out else {}),
        }
        for spec, one in outcomes(name).items()
    }
    return {**row, "why_no_batch": why_no_batch(name), "methods": found}


def counts(models: dict[str, Any]) -> dict[str, int]:
    """How many types and variants there are, how many were not built, and the results of all methods on the others."""
    results = Counter(one["result"] for row in models.values() for one in row.get("methods", {}).values())
    types = [name for name in models if ":" not in name]
    return {
        "types": len(types),
        "types_not_built": sum("not_built" in models[name] for name in types),
        "variants": len(models) - len(types),
        **{name: results[name] for name in ("works", "no effect", "refused", "wrong")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="types or type:variant; these alone are measured and printed"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    models = {}
    for name in args.names or (*mapped.names(), *mapped.variants()):
        models[name] = measured(name)
        told = Counter(one["result"] for one in models[name].get("methods", {}).values())
        print(name, models[name].get("not_built") or dict(told), flush=True)
    if args.names:
        print(json.dumps(models, indent=1))
        return
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/families.py",
        "models_are": "tiny, with random weights, float32, on the CPU",
        "seed": mapped.SEED,
        "tokens": TOKENS,
        "versions": versions(),
        "hardware": hardware("cpu"),
        "specs": SPECS,
        "counts": counts(models),
        "models": models,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result["counts"])


if __name__ == "__main__":
    main()
