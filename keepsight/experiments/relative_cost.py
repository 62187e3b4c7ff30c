"""The cost of a method, relative to the baseline of the same run.

Within a run both used the same machine and the same batches, and took turns batch by batch, so that other work on the
machine slowed both alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from keepsight.experiments.store import Run


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a method took, over the questions that both the method and the run's baseline answered.

    Attributes:
        seconds: the mean wall time of an answer.
        tokens: the mean number of tokens of an answer.
        speed: tokens per second.
        relative_seconds: ``seconds`` over those of the baseline in the same run; None where the run lacks the baseline.
        relative_speed: ``speed`` over that of the baseline in the same run; None where the run lacks the baseline.
    """

    seconds: float | None
    tokens: float | None
    speed: float | None
    relative_seconds: float | None
    relative_speed: float | None


def cost_of(run: Run, method: str, baseline: str) -> Cost:
    """What ``method`` took in ``run``, compared with the baseline in the same run. Only questions that both answered
    count.

    Args:
        run: the run that holds the method's answers.
        method: a method of the run.
        baseline: the method to compare with; the run may lack it, and the relative figures then are None.
    """
    timed = {
        one: {
            answer.id: (answer.seconds, answer.tokens)
            for answer in run.answers(one)
            if answer.seconds is not None and answer.tokens is not None
        }
        # The baseline may have been answered in another run. Times of other runs are never used, since they may come from
        # another machine.
        for one in {method, baseline} & set(run.methods)
    }
    # An answer to a hard question takes longer whoever gives it, so both must have answered the same questions.
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
