"""How many captions CHAIR scores per second of one core, and how many the official code does, measured in turns.

    python benchmarks/chair_speed.py --captions said.jsonl --ground-truth objects_pattern.jsonl
    python benchmarks/chair_speed.py --captions a.jsonl --captions b.jsonl --ground-truth objects_pattern.jsonl \
        --official CHAIR-metric-standalone/chair.py --inflect pattern/text/en/inflect.py --json out.json
    python benchmarks/chair_speed.py --family wordnet --captions a.jsonl --ground-truth objects_wordnet.jsonl \
        --official OPERA/chair.py

Both sides read one file of captions and score it: ours without the bootstrap, which the official code lacks, theirs with
its ground truth put in place. Counted is CPU time of this process. Before every measurement all that Keepsight remembers
of words is forgotten, and the first quarter of the captions is scored as a warm-up; the other three quarters, new to it,
are what is timed. Their figures must agree, or there is no ratio. The official code is not part of Keepsight: get
chair.py from Maxlinn/CHAIR-metric-standalone or shikiw/OPERA, and for the former inflect.py from clips/pattern.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nltk

import keepsight
from keepsight.eval.annotations import load_truth
from keepsight.eval.chair import score as chair
from keepsight.eval.chair import singular, tokens, wordnet
from keepsight.eval.chair.captions import read_captions


def forget() -> None:
    """Clear the caches in which a process that scores captions keeps what it worked out about words."""
    for remembered in (tokens._cut, singular.singularize, wordnet._tools):
        remembered.cache_clear()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the CPU seconds of a call, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def module(name: str, path: Path) -> ModuleType:
    """Returns a Python file as a module, without its folder on the path."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        sys.exit(f"error: {path} is no Python file")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def official(path: Path, inflect: Path | None, truth: dict[Any, Any]) -> Any:
    """Returns the official scorer with its ground truth in place. Of Pattern it gets ``singularize`` alone."""
    if inflect is not None:
        # The scorer calls one function of one file of Pattern. Stand-ins answer what that file imports from the rest.
        text = ModuleType("pattern.text")
        text.Verbs = type(
            "Verbs", (), {"__init__": lambda self, *_, **__: None, "__getattr__": lambda self, name: None}
        )  # type: ignore[attr-defined]
        text.__getattr__ = lambda name: name  # type: ignore[method-assign]
        sys.modules |= {"pattern": ModuleType("pattern"), "pattern.text": text}
        english = SimpleNamespace(singularize=module("inflect", inflect).singularize)
        sys.modules["pattern.en"] = english  # type: ignore[assignment]
    theirs = module("official_chair", path)
    # The ground truth is set below, so COCO's annotations need not be read.
    theirs.CHAIR.get_annotations = lambda self: None
    scorer = theirs.CHAIR("")
    scorer.imid_to_objects = {image: set(objects) for image, objects in truth.items()}
    return scorer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--ground-truth", type=Path, required=True)
    parser.add_argument("--family", choices=list(chair.FAMILIES), default="pattern")
    parser.add_argument(
        "--official", type=Path, help="chair.py of Maxlinn/CHAIR-metric-standalone or shikiw/OPERA"
    )
    parser.add_argument("--inflect", type=Path, help="inflect.py of clips/pattern, for the former")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    args = parser.parse_args()

    said = [caption for path in args.captions for caption in read_captions(path)]
    truth = load_truth([args.ground_truth], [caption.image_id for caption in said], args.family)
    quarter = len(said) // 4
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "warm.jsonl", Path(folder) / "timed.jsonl"
        for file, part in zip(files, (said[:quarter], said[quarter:]), strict=True):
            # Image ids are replaced by line numbers, since an image may be captioned once a file and the captions of
            # several files are joined here. The figures do not need the true id.
            lines = [json.dumps({"image_id": at, "caption": one.caption}) for at, one in enumerate(part)]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        known = [
            {at: truth[one.image_id] for at, one in enumerate(part)}
            for part in (said[:quarter], said[quarter:])
        ]
        scorer = args.official and official(args.official, args.inflect, known[1])

        def ours(at: int) -> Any:
            return chair.score(read_captions(files[at]), known[at], family=args.family, resamples=0)

        def theirs() -> Any:
            with contextlib.redirect_stderr(io.StringIO()):
                return scorer.compute_chair(str(files[1]), "image_id", "caption")

        pairs: list[tuple[float, float | None]] = []
        for _ in range(args.repeats):
            # Every repetition starts from the same state; otherwise the second would find all words of the first.
            forget()
            ours(0)
            mine, report = seconds(lambda: ours(1))
            if scorer:
                other, result = seconds(theirs)
                # A faster scorer that computes something else would be no comparison.
                figures = result["overall_metrics"]
                if (
                    abs(figures["CHAIRi"] - report.chair_i) > 1e-9
                    or abs(figures["CHAIRs"] - report.chair_s) > 1e-9
                ):
                    sys.exit(f"error: the figures differ: {figures} and {report.chair_s}, {report.chair_i}")
            pairs.append((mine, other if scorer else None))

    timed = len(said) - quarter
    row: dict[str, Any] = {
        "family": args.family,
        "captions": timed,
        "mean_length": report.length,
        "repeats": args.repeats,
        "captions_per_cpu_second": timed / statistics.median(mine for mine, _ in pairs),
        "spread": [timed / max(mine for mine, _ in pairs), timed / min(mine for mine, _ in pairs)],
        "hardware": f"{platform.machine()} CPU ({processor()}), one thread",
        "versions": {
            "keepsight": keepsight.__version__,
            "python": platform.python_version(),
            "nltk": nltk.__version__,
        },
    }
    if scorer:
        # The two sides of a pair ran one right after the other, so their ratio suffers least from a busy machine.
        ratios = [other / mine for mine, other in pairs if other is not None]
        row["official"] = {
            "file": "/".join(args.official.resolve().parts[-2:]),
            "captions_per_cpu_second": timed
            / statistics.median(other for _, other in pairs if other is not None),
            "ratio": statistics.median(ratios),
            "ratio_spread": [min(ratios), max(ratios)],
        }
    print(json.dumps(row, indent=1))
    if args.json:
        # A run measures one family of CHAIR; the row of the other one in the file stays.
        kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
        kept = [old for old in kept if old["family"] != args.family] + [row]
        args.json.write_text(
            json.dumps(sorted(kept, key=lambda one: str(one["family"])), indent=1) + "\n", encoding="utf-8"
        )


def processor() -> str:
    """Returns the name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    main()
