"""Greedy decoding against methods on the demo world: the same pictures, one run, paired intervals, and a control.

The control is greedy cut, picture by picture, to as many mentions as the method made: a method that merely says less makes
up less too, and is no better than its control.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keepsight.demo.splits import check_split
from keepsight.errors import InvalidParameter

if TYPE_CHECKING:
    from pathlib import Path

    from keepsight.demo.world import Scene
    from keepsight.eval.chair.report import Report
    from keepsight.method import Method

GREEDY = "greedy"
RATES = ("chair_s", "chair_i", "recall")
FIGURES = (*RATES, "precision", "f1", "length", "mentions")


@dataclass(frozen=True)
class Entry:
    """One way of decoding: its spec, its scores, what it took, and its control (None for greedy)."""

    method: str
    report: Report
    tokens: int
    seconds: float
    cut: Report | None


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found: the scenes, one entry per way of decoding (greedy first), and the facts of the run."""

    scenes: tuple[Scene, ...]
    entries: tuple[Entry, ...]
    split: str
    seed: int
    model: str
    weights: str | None
    batch: int
    device: str
    threads: int

    @property
    def greedy(self) -> Entry:
        return self.entries[0]

    def to_json(self, *, captions: bool = False) -> dict[str, Any]:
        """The result as JSON can hold it: rates are fractions in [0, 1], intervals 95 % bootstrap over pictures.

        Args:
            captions: add every caption with its unsupported words.
        """
        result: dict[str, Any] = {
            "model": self.model,
            "split": self.split,
            "n": len(self.scenes),
            "seed": self.seed,
            "rows": [self._row(entry) for entry in self.entries],
            "metric": f"CHAIR, family {self.greedy.report.family}",
            "bootstrap": {
                "resamples": self.greedy.report.resamples,
                "seed": self.greedy.report.seed,
                "level": 0.95,
            },
            "cost": "wall seconds of generation over those of greedy in the same run, batches interleaved",
            "batch": self.batch,
            "weights_sha256": self.weights,
            "hardware": {
                "cpu": _cpu(),
                "cores": os.cpu_count(),
                "threads": self.threads,
                "device": self.device,
            },
            "versions": _versions(),
        }
        if captions:
            result["captions"] = [
                {
                    "image_id": scene.image_id,
                    "objects": list(scene.names),
                    **{
                        entry.method: {
                            "caption": entry.report.captions[i].caption,
                            "unsupported": [
                                mention.object for mention in entry.report.captions[i].hallucinated
                            ],
                        }
                        for entry in self.entries
                    },
                }
                for i, scene in enumerate(self.scenes)
            ]
        return result

    def _row(self, entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {
            "method": entry.method,
            **_figures(entry.report),
            "cost": entry.seconds / self.greedy.seconds,
            "seconds": entry.seconds,
            "tokens": entry.tokens,
        }
        if entry.cut is not None:
            row["difference"] = _differences(self.greedy.report, entry.report)
            row["greedy_cut"] = _figures(entry.cut)
            row["difference_to_greedy_cut"] = _differences(entry.cut, entry.report)
        return row


def compare(
    model: Any,
    processor: Any,
    methods: Iterable[Method],
    *,
    split: str = "test-shifted",
    n: int = 500,
    seed: int = 0,
    batch: int = 32,
    max_new_tokens: int = 64,
    name: str = "demo",
    weights: str | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Caption the first ``n`` scenes of ``split`` greedily and under each method, and score them with CHAIR.

    Every batch is captioned in all ways before the next one, after a warm-up of four pictures, so that whatever else
    the machine does falls on all of them alike.

    Args:
        seed: of the world, 0 or more: another seed is another set of pictures from the same distribution.
        name, weights: what to call the model, and the digest of its weights, in the result.
        advance: told how many captions were made, each time some were.

    Raises:
        UnknownSplit, InvalidParameter: also for a method that is listed twice.
    """
    import torch

    from keepsight.demo.model import PROMPT
    from keepsight.demo.world import scenes
    from keepsight.inference.generation import Generation, answer

    check_split(split)
    if n < 1 or batch < 1 or seed < 0:
        raise InvalidParameter(f"n={n} and batch={batch} must be 1 or more, seed={seed} must be 0 or more")
    ways: dict[str, tuple[Method, ...]] = {GREEDY: ()}
    for method in methods:
        if method.spec in ways:
            raise InvalidParameter(f"{method.spec} is listed twice")
        ways[method.spec] = (method,)

    shown = tuple(scenes(split, n, seed))
    generation = Generation(max_new_tokens=max_new_tokens)
    texts: dict[str, list[str]] = {way: [] for way in ways}
    tokens, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for start in range(0, n, batch):
        pictures = [scene.image() for scene in shown[start : start + batch]]
        for way, recipe in ways.items():
            if start == 0:
                next(answer(model, processor, pictures[:4], PROMPT, *recipe, batch=4, generation=generation))
            said = next(
                answer(model, processor, pictures, PROMPT, *recipe, batch=batch, generation=generation)
            )
            texts[way] += said.texts
            tokens[way] += said.tokens
            seconds[way] += said.seconds
            advance(len(pictures))

    greedy = texts[GREEDY]
    entries = []
    for way, captions in texts.items():
        report = _score(shown, captions)
        cut = None if way == GREEDY else _score(shown, _cut(greedy, report))
        entries.append(Entry(way, report, tokens[way], seconds[way], cut))
    return Comparison(
        scenes=shown,
        entries=tuple(entries),
        split=split,
        seed=seed,
        model=name,
        weights=weights,
        batch=batch,
        device=str(model.device),
        threads=torch.get_num_threads(),
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _score(scenes: Sequence[Scene], captions: Sequence[str]) -> Report:
    from keepsight.eval.chair import score as chair
    from keepsight.eval.chair.captions import Caption

    pairs = [Caption(scene.image_id, text) for scene, text in zip(scenes, captions, strict=True)]
    return chair.score(pairs, {scene.image_id: scene.names for scene in scenes})


def _cut(captions: Sequence[str], report: Report) -> list[str]:
    from keepsight.eval.chair.score import truncate_mentions

    return [
        truncate_mentions(text, len(judged.generated))
        for text, judged in zip(captions, report.captions, strict=True)
    ]


def _figures(report: Report) -> dict[str, Any]:
    intervals: Mapping[str, Any] = report.ci
    return {
        **{name: getattr(report, name) for name in FIGURES},
        "ci": {name: None if intervals[name] is None else list(intervals[name]) for name in FIGURES},
    }


def _differences(before: Report, after: Report) -> dict[str, Any]:
    from keepsight.eval.stats.bootstrap import paired

    found = {name: paired(before, after, name) for name in RATES}
    return {name: {"value": one.value, "ci": [one.low, one.high]} for name, one in found.items()}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import keepsight

    found = {package: version(package) for package in ("torch", "transformers")}
    return {"keepsight": keepsight.__version__, "python": platform.python_version(), **found}
