"""What a method costs, relative to the baseline of the same run: the same machine, the same batches, interleaved."""

from __future__ import annotations

from dataclasses import dataclass

from keepsight.experiments.store import Run


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method took, over the questions that it and the run's baseline answered.

    Attributes:
        seconds: of an answer, on average.
        tokens: of an answer, on average.
        speed: tokens per second.
        relative_seconds: `seconds` over those of the baseline in the same run; None where the run lacks it.
        relative_speed: `speed` over that of the baseline in the same run.
    """

    seconds: float | None
    tokens: float | None
    speed: float | None
    relative_seconds: float | None
    relative_speed: float | None


def cost_of(run: Run, method: str, baseline: str) -> Cost:
    """What ``method`` took in ``run``, beside the baseline in the same run; only questions that both answered count."""
    timed = {
        one: {
            answer.id: (answer.seconds, answer.tokens)
            for answer in run.answers(one)
            if answer.seconds is not None and answer.tokens is not None
        }
        for one in {method, baseline} & set(run.methods)
    }
    both = [asked for asked in timed[method] if all(asked in known for known in timed.values())]
    spent = {
        one: (sum(known[asked][0] for asked in both), sum(known[asked][1] for asked in both))
        for one, known in timed.items()
    }
    seconds, tokens = spent[method]
    base = spent.get(baseline)
    return Cost(
        seconds=seconds / len(both) if both else None,
        tokens=tokens / len(both) if both else None,
        speed=tokens / seconds if seconds else None,
        relative_seconds=seconds / base[0] if base and base[0] else None,
        relative_speed=(tokens / base[1]) / (seconds / base[0]) if base and all(base) and seconds else None,
    )
