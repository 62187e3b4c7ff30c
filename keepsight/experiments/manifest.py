"""The settings of a run, which are everything that its answers depend on, and the manifest that records them.

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
from keepsight.experiments.environment import versions
from keepsight.experiments.errors import BadBenchmark, RunMismatch
from keepsight.experiments.store import FORMAT
from keepsight.files import file_digest

QUESTION = "{question}"
LONGEST = {"chair": 512, "pope": 32, "beaf": 32}
"""The default for the longest answer of each benchmark, in tokens; most papers on CHAIR generate 512."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run: a benchmark, a model, and the decoding configurations to try on it.

    Args:
        bench: the benchmark that is asked.
        ways: the decoding configurations, at least one, each once. The first is the baseline if no method acts in it.
        model: the checkpoint, as ``inference.loading.load`` takes it.
        dtype: the precision of the weights, as ``inference.loading.load`` takes it.
        prompt: what is asked about each picture, with ``{question}`` in place of the benchmark's question.
        raw_prompt: whether the prompt is used as it is, without the chat template; it must then hold the picture's
            placeholder.
        max_new_tokens: the longest answer in tokens, 1 or more; None is 512 for chair, and 32 for pope and beaf.
        batch: how many questions one call of ``generate`` answers, 1 or more.
        seed: the seed of sampling, 0 or more.

    Raises:
        InvalidParameter: a value is out of its range.
        BadBenchmark: the benchmark has different questions, and the prompt holds no ``{question}``.
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
        # CHAIR asks the same question about every picture, so that a prompt may replace it altogether.
        if self.bench.name != "chair" and QUESTION not in self.prompt:
            raise BadBenchmark(
                f"the prompt {self.prompt!r} asks the same about every picture: write {QUESTION} where the question goes"
            )

    @property
    def longest(self) -> int:
        """The longest answer in tokens, with the benchmark's default filled in."""
        return LONGEST[self.bench.name] if self.max_new_tokens is None else self.max_new_tokens

    @property
    def baseline(self) -> str | None:
        """The name of the configuration that the others are compared with; None if a method acts in the first."""
        return self.ways[0].name if self.ways[0].plain else None

    def prompt_for(self, item: ItemRecord) -> str:
        """The prompt for a question, before the chat template is applied."""
        return self.prompt.replace(QUESTION, item.question)

    def settings(self, weights: Mapping[str, str | None]) -> dict[str, Any]:
        """Everything that the answers depend on, as JSON.

        Args:
            weights: what ``environment.weights`` says of the model.

        Raises:
            BadCalibration: a method names a file that is not a calibration.
            InputError: a calibration file cannot be read.
        """
        calibrations = {
            path
            for way in self.ways
            for method in way.methods
            if isinstance(path := getattr(method, "calibration", None), str)
        }
        # A run may take hours, so a file that is no calibration is refused before it begins.
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
            # A calibration that was measured anew under the same name gives other answers, so its content is part of the
            # settings and not only its path.
            "calibrations": {path: file_digest(Path(path)) for path in sorted(calibrations)},
        }


def new_manifest(settings: Mapping[str, Any], session: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that begins now, with its settings and its first session."""
    # The run itself began with its first session. Where runs are merged, this decides which baseline is used.
    created = {"created": session["started"], "world_size": session["world_size"]}
    return {"format": FORMAT, **settings, **created, "versions": versions(), "sessions": [dict(session)]}


def new_session(world_size: int, hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a manifest for one start of the run, be it the first or a resume.

    Args:
        world_size: how many processes share the run.
        hardware: what ``environment.hardware`` says of this machine.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {
        "started": now,
        "world_size": world_size,
        "hardware": dict(hardware),
        "versions": versions(),
    }


def check_same(manifest: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to mix answers that were made under different settings.

    Raises:
        RunMismatch: the settings differ from those of the manifest; the message names the differences.
    """
    before, now = dict(_flat(manifest)), dict(_flat(settings))
    # The source holds paths, which may be written in several ways. The digest says whether the questions are the same.
    names = [name for name in now if name != "bench.source" and before.get(name) != now[name]]
    if names:
        was = ", ".join(f"{name}={_short(before.get(name))}" for name in names[:3])
        asked = ", ".join(f"{name}={_short(now[name])}" for name in names[:3])
        raise RunMismatch(
            f"{folder} was begun with {was}, and now {asked} is asked for: give the settings it was begun with, or another"
            " folder"
        )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings with the fields of ``bench`` and ``weights`` as settings of their own, such as ``bench.digest``."""
    for name, value in settings.items():
        # These two hold several facts each, and a message should name the one that differs.
        if name in ("bench", "weights") and isinstance(value, Mapping):
            yield from ((f"{name}.{part}", inner) for part, inner in value.items())
        else:
            yield name, value


def _short(value: Any) -> str:
    """A value as JSON of at most about 100 characters, for a message of one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"
