"""Times one generation token by token, and compares generations with plain ones that alternate with them."""

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
"""The kinds of clocks, see ``Clock``."""


class Clock(StoppingCriteria):
    """A stopping criterion that never stops: it only reads the clock after every token.

    Args:
        device: where the model runs. On CUDA each reading waits for the work that was queued before it.
        kind: ``wall`` for wall time, or ``cpu`` for the CPU seconds of this process, all its threads together.
    """

    def __init__(self, device: torch.device, kind: str = "wall") -> None:
        self._cuda = device if device.type == "cuda" else None
        self._read = time.process_time if kind == "cpu" else time.perf_counter
        self.readings = [self.now()]

    def now(self) -> float:
        """The time in seconds, from a start that means nothing by itself."""
        # CUDA runs kernels behind the back of Python, so without waiting the clock would time only how fast they are
        # queued.
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return self._read()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.readings.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of one generation.

    Args:
        prefill: seconds until the first token, with the amateur's prefill.
        token: the mean seconds of each further token.
        tokens: the new tokens of each row.
    """

    prefill: float
    token: float
    tokens: tuple[tuple[int, ...], ...] = ()


def split(readings: list[float]) -> tuple[float, float]:
    """The seconds of the prefill and of a further token.

    The time of a token is the mean from the third token on. The prefill is the time of the first two tokens minus the
    time of one token: the amateur of a method that gives it no weight at the first token, such as M3ID, is prefilled
    with the second one.

    Args:
        readings: at least four times: one at the start, then one after every token.
    """
    token = (readings[-1] - readings[2]) / (len(readings) - 3)
    return readings[2] - readings[0] - token, token


def once(
    model: Any, inputs: Mapping[str, Any], way: Way, *, new: int, clock: str = "wall", cache: str = "dynamic"
) -> Timing:
    """Time one greedy generation of exactly ``new`` tokens, even if the model would end earlier.

    What ``way`` sets up before the first pass counts as prefill.

    Args:
        model, inputs: what is measured on.
        way: how it generates.
        new: the number of new tokens, 4 or more.
        clock: ``wall`` or ``cpu``, see ``Clock``.
        cache: an entry of ``variants.CACHES``.
    """
    # The clock starts before the method is put in place, because setting it up is part of what a user waits for.
    watch = Clock(inputs["input_ids"].device, clock)
    with torch.no_grad(), opened(model, inputs, way, cache) as options:
        out = model.generate(
            # Without a least number of tokens, a model that ends early under one method would be compared over another
            # length.
            **inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1, stopping_criteria=[watch],
            pad_token_id=0, **options,
        )  # fmt: skip
    # Variants that ask for attention weights get an object instead of a tensor.
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
    """Measure each variant, relative to the plain generations that alternate with its own; see ``figures``.

    Each variant generates once untimed, so that what happens at first use does not count. All in all that is ``len(ways)
    * (2 * repeats + 1) + 1`` generations.

    Args:
        model, inputs: what is measured on.
        ways: the variants, see ``variants.plan``.
        new: the tokens of each generation, 4 or more.
        repeats: how many pairs of a plain and another generation each variant gets, 1 or more.
        clock: ``wall`` or ``cpu``, see ``Clock``.
        cache: the cache of every generation, see ``variants.CACHES``.
        advance: called with 1 after every generation, for a progress bar.

    Returns:
        One row of figures for each variant.
    """

    def run(way: Way) -> Timing:
        """Time one generation, and move the progress bar on."""
        found = once(model, inputs, way, new=new, clock=clock, cache=cache)
        advance(1)
        return found

    run(PLAIN)
    said: dict[str, tuple[tuple[int, ...], ...]] = {}
    rows = []
    for way in ways:
        first = run(way)
        # The variants of a method should write the same tokens, since a shared pass is only faster. The first variant of a
        # method has nothing to be compared with, and nor has a variant without an amateur.
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
    """How many generations ``measure`` runs for a number of variants."""
    return ways * (2 * repeats + 1) + 1


def figures(pairs: list[tuple[Timing, Timing]], batch: int) -> dict[str, Any]:
    """Medians over pairs of a plain and another generation.

    Ratios are taken within each pair, so that a machine that slows down during a run does not change them.

    Args:
        pairs: the timings of each pair, the plain one first.
        batch: the rows of each generation.

    Returns:
        ``prefill_ms``, ``token_ms`` and the same of plain; ``prefill_ratio`` and ``decode_ratio``, medians of the pairs'
        ratios, with ``prefill_spread`` and ``decode_spread``, the smallest and the largest; ``tokens_per_second`` of all
        rows together, and that of plain.
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
