"""Run folders written by hand: what was asked, and what each method answered to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepsight.experiments.benchmark import ItemRecord, digest
from keepsight.experiments.store import Answer, Run, create, open_run

Said = str | None
"""An answer; None failed. A question that is not answered is missing."""


def described(truth: Mapping[int, Sequence[str]]) -> list[ItemRecord]:
    """CHAIR's items: a question for each picture."""
    return [
        ItemRecord(
            id=f"q{image}", image_id=image, question="Describe this image.", truth={"objects": list(objects)}
        )
        for image, objects in truth.items()
    ]


def asked(labels: Mapping[str, Sequence[str]]) -> list[ItemRecord]:
    """POPE's items: for each split the right answers about pictures 0, 1, …"""
    return [
        ItemRecord(
            id=f"{split}/{image}",
            image_id=image,
            question="Is there a cat in the image?",
            truth={"label": label, "split": split, "object": "cat"},
        )
        for split, row in labels.items()
        for image, label in enumerate(row)
    ]


def made(
    folder: Path,
    items: Sequence[ItemRecord],
    answers: Mapping[str, Sequence[Said]],
    *,
    bench: str = "chair",
    seconds: Mapping[str, float] | None = None,
    split: str = "test",
    **manifest: Any,
) -> Run:
    """A run in ``folder``; ``answers`` begin with the baseline, one for each item, fewer where some are missing."""
    methods = list(answers)
    head = {
        "name": bench,
        "split": split,
        "source": "made by hand",
        "family": None,
        "n": len(items),
        "digest": digest(items),
    }
    folder.mkdir()
    settings = {
        "format": 1,
        "bench": head,
        "model": "a model",
        "weights": {"sha256": "abc", "revision": None},
        "dtype": "auto",
        "prompt": "{question}",
        "raw_prompt": False,
        "max_new_tokens": 64,
        "batch": 2,
        "seed": 0,
        "methods": methods,
        "baseline": methods[0],
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"keepsight": "0"},
        "sessions": [{"hardware": {"cpu": "a processor", "device": "cpu"}}],
    }
    create(folder, settings | manifest, items)
    lines = [
        Answer(
            id=item.id,
            image_id=item.image_id,
            method=method,
            model="a model",
            seed=0,
            prompt=item.question,
            answer=text,
            error=None if text is not None else "out of memory",
            prompt_tokens=10,
            tokens=None if text is None else 4,
            seconds=None if text is None else (seconds or {}).get(method, 0.5),
            batch=2,
            rank=0,
            versions={},
        ).to_line()
        for method, texts in answers.items()
        for item, text in zip(items, texts, strict=False)
    ]
    (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    return open_run(folder)
