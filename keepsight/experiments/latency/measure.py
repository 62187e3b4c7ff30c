"""The measuring itself: plain and other ways by turns, a reading after every token, medians of neighbours' ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from keepsight.experiments.latency.variants import PLAIN, Way, opened

CLOCKS = ("wall", "cpu")


class Clock(StoppingCriteria):
    """Reads the time after every token, and never stops anything."""

    def __init__(self, device: torch.device, kind: str = "wall") -> None:
        self._cuda = device if device.type == "cuda" else None
        self._read = time.process_time if kind == "cpu" else time.perf_counter
        self.readings = [self.now()]

    def now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return self._read()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.readings.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds until the first token, the second opinion's prefill included, and of each further one, on average."""

    prefill: float
    token: float
    tokens: tuple[tuple[int, ...], ...] = ()


def split(readings: list[float]) -> tuple[float, float]:
    """Seconds of prefill, and of a token, from the readings at the start and after every token, at least four.

    The time per token is the mean from the third on. Prefill is what the first two took, less one token: a separate
    branch whose weight is 0 at the first token (M3ID) is prefilled with the second.
    """
    token = (readings[-1] - readings[2]) / (len(readings) - 3)
    return readings[2] - readings[0] - token, token


def once(
    model: Any, inputs: Mapping[str, Any], way: Way, *, new: int, clock: str = "wall", cache: str = "dynamic"
) -> Timing:
    """One greedy generation of ``new`` tokens, whatever the model would end with; what a way sets up counts as prefill."""
    watch = Clock(inputs["input_ids"].device, clock)
    with torch.no_grad(), opened(model, inputs, way, cache) as options:
        out = model.generate(
            **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1, stopping_criteria=[watch],
            pad_token_id=0, **options,
        )  # fmt: skip
    written = out if isinstance(out, torch.Tensor) else out.sequences
    prefill, token = split(watch.readings)
    rows = written[:, inputs["input_ids"].shape[1] :].tolist()
    return Timing(prefill=prefill, token=token, tokens=tuple(map(tuple, rows)))


def measure(
    model: Any,
    inputs: Mapping[str, Any],
    ways: list[Way],
    *,
    new: int,
    repeats: int,
    clock: str = "wall",
    cache: str = "dynamic",
    advance: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """One row of figures for each way, each over the plain generation just before it; see ``figures``.

    A way warms up once before it counts. Cost: ``len(ways) * (2 * repeats + 1) + 1`` generations.
    """

    def run(way: Way) -> Timing:
        found = once(model, inputs, way, new=new, clock=clock, cache=cache)
        advance(1)
        return found

    run(PLAIN)
    said: dict[str, tuple[tuple[int, ...], ...]] = {}
    rows = []
    for way in ways:
        first = run(way)
        reference = said.get(way.method) if way.fused is not None and way.method else None
        said.setdefault(way.method, first.tokens)
        pairs = [(run(PLAIN), run(way)) for _ in range(repeats)]
        rows.append(
            {
                "method": way.name,
                "way": way.kind,
                "fused": way.fused,
                "batch": int(inputs["input_ids"].shape[0]),
                "prompt_tokens": int(inputs["input_ids"].shape[1]),
                "new_tokens": new,
                **figures(pairs, int(inputs["input_ids"].shape[0])),
                "same_tokens": None if reference is None else first.tokens == reference,
            }
        )
    return rows


def measurements(ways: int, repeats: int) -> int:
    """How many generations ``measure`` runs."""
    return ways * (2 * repeats + 1) + 1


def figures(pairs: list[tuple[Timing, Timing]], batch: int) -> dict[str, Any]:
    """Medians over pairs of a plain and another generation.

    Returns:
        ``prefill_ms``, ``token_ms`` and the same of plain; ``prefill_ratio`` and ``decode_ratio``, medians of the pairs'
        ratios, with ``prefill_spread`` and ``decode_spread``, the smallest and the largest; ``tokens_per_second`` of all
        rows together, and plain's.
    """
    plain, other = [a for a, _ in pairs], [b for _, b in pairs]
    prefill = [b.prefill / a.prefill for a, b in pairs]
    decode = [b.token / a.token for a, b in pairs]
    token, plain_token = (statistics.median(one.token for one in some) for some in (other, plain))
    return {
        "prefill_ms": 1000 * statistics.median(one.prefill for one in other),
        "plain_prefill_ms": 1000 * statistics.median(one.prefill for one in plain),
        "prefill_ratio": statistics.median(prefill),
        "prefill_spread": [min(prefill), max(prefill)],
        "token_ms": 1000 * token,
        "plain_token_ms": 1000 * plain_token,
        "decode_ratio": statistics.median(decode),
        "decode_spread": [min(decode), max(decode)],
        "tokens_per_second": batch / token,
        "plain_tokens_per_second": batch / plain_token,
    }
