"""The settings of a run, which are everything its answers depend on, and the manifest that records them.

A run can be resumed only with the settings that its manifest holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from keepsight.calibration.file import Calibration
from keepsight.errors import InvalidParameter
from keepsight.experiments.benchmark import Benchmark, ItemRecord
from keepsight.experiments.decoding_config import DecodingConfig
from keepsight.experiments.environment import file_digest, versions
from keepsight.experiments.errors import BadBenchmark, RunMismatch
from keepsight.experiments.store import FORMAT

QUESTION = "{question}"
LONGEST = {"chair": 512, "pope": 32, "beaf": 32}
"""Default for the longest answer of each benchmark, in tokens; most papers on CHAIR generate 512."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run: a benchmark, a model, and the ways of decoding to try on it.

    Args:
        bench: what is asked.
        ways: at least one, each once; the first is the baseline if it is plain.
        model: as ``inference.loading.load`` takes it.
        dtype: likewise.
        prompt: what is asked about each picture, ``{question}`` standing for the bench's question.
        raw_prompt: take the prompt as it is, the picture's placeholder included, instead of through the chat template.
        max_new_tokens: longest answer, 1 or more; None is 512 for chair, 32 for pope and beaf.
        batch: questions in one ``generate``, 1 or more.
        seed: of sampling, 0 or more.

    Raises:
        InvalidParameter: a value is out of its range.
        BadBenchmark: the prompt of a bench of many questions holds no ``{question}``.
    """

    bench: Benchmark
    ways: tuple[DecodingConfig, ...]
    model: str = "demo"
    dtype: str = "auto"
    prompt: str = QUESTION
    raw_prompt: bool = False
    max_new_tokens: int | None = None
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.seed < 0:
            raise InvalidParameter(f"batch={self.batch} must be 1 or more and seed={self.seed} 0 or more")
        if self.longest < 1:
            raise InvalidParameter(f"max_new_tokens={self.longest} must be a whole number, 1 or more")
        if self.bench.name != "chair" and QUESTION not in self.prompt:
            raise BadBenchmark(
                f"the prompt {self.prompt!r} asks the same about every picture: write {QUESTION} where the question goes"
            )

    @property
    def longest(self) -> int:
        return LONGEST[self.bench.name] if self.max_new_tokens is None else self.max_new_tokens

    @property
    def baseline(self) -> str | None:
        return self.ways[0].name if self.ways[0].plain else None

    def prompt_for(self, item: ItemRecord) -> str:
        """What the model is asked, before the chat template."""
        return self.prompt.replace(QUESTION, item.question)

    def settings(self, weights: Mapping[str, str | None]) -> dict[str, Any]:
        """Everything that the answers depend on, as JSON.

        Raises:
            BadCalibration: a method names a file that is none.
        """
        calibrations = {
            path
            for way in self.ways
            for method in way.methods
            if isinstance(path := getattr(method, "calibration", None), str)
        }
        for path in calibrations:
            Calibration.load(path)
        return {
            "bench": self.bench.head(),
            "model": self.model,
            "weights": dict(weights),
            "dtype": self.dtype,
            "prompt": self.prompt,
            "raw_prompt": self.raw_prompt,
            "max_new_tokens": self.longest,
            "batch": self.batch,
            "seed": self.seed,
            "methods": [way.name for way in self.ways],
            "baseline": self.baseline,
            "calibrations": {path: file_digest(Path(path)) for path in sorted(calibrations)},
        }


def new_manifest(settings: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that begins now."""
    created = {"created": session["started"], "world_size": session["world_size"]}
    return {"format": FORMAT, **settings, **created, "versions": versions(), "sessions": [dict(session)]}


def new_session(world_size: int, hardware: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of each time the run was started or resumed."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {
        "started": now,
        "world_size": world_size,
        "hardware": dict(hardware),
        "versions": versions(),
    }


def check_same(manifest: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix answers made under different settings. Raises ``RunMismatch`` naming the differences."""
    before, now = dict(_flat(manifest)), dict(_flat(settings))
    # A path may be written in several ways: the digest says whether the questions are the same
    names = [name for name in now if name != "bench.source" and before.get(name) != now[name]]
    if names:
        was = ", ".join(f"{name}={_short(before.get(name))}" for name in names[:3])
        asked = ", ".join(f"{name}={_short(now[name])}" for name in names[:3])
        raise RunMismatch(
            f"{folder} was begun with {was}, and now {asked} is asked for: give the settings it was begun with, or another"
            " folder"
        )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in ("bench", "weights") and isinstance(value, Mapping):
            yield from ((f"{name}.{part}", inner) for part, inner in value.items())
        else:
            yield name, value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"
