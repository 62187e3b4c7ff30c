"""What a verification found: one finding for each comparison, and the report of them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Verdict(str, Enum):
    """How a comparison ended."""

    EXACT = "exact"
    """Not one bit differs, or, where a difference was wanted, there is one."""
    ROUNDING = "within rounding"
    """The difference is at most what rounding in this data type explains."""
    REFUSED = "refused"
    """The method, or this way of running it, raised a named error before anything was generated."""
    WRONG = "WRONG"
    """The difference is larger than rounding explains, something stayed behind, or the model crashed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison.

    Args:
        method: the spec of the method; ``plain`` for the model without one.
        compared: what was compared with what.
        verdict: how it ended.
        difference: the largest difference; None where nothing could be compared.
        allowed: the largest difference that rounding explains; None where only 0 is right, or a difference was wanted.
        reason: why it was refused, or what is wrong, in a clause.
    """

    method: str
    compared: str
    verdict: Verdict
    difference: float | None = None
    allowed: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All comparisons on one model.

    Args:
        model_class, family: the class of the model, and the ``model_type`` of its configuration.
        dtype, device, attention: of the weights, and the decoder's attention function.
        versions: of keepsight, torch, transformers and Python.
        prompt, tokens: the length of the prompt, and how many tokens were generated in each run.
        rounding: the largest difference between the plain model's scores with a cache and without one, and at least one unit
            of rounding of its largest score.
        findings: in the order of the methods.
    """

    model_class: str
    family: str
    dtype: str
    device: str
    attention: str | None
    versions: dict[str, str]
    prompt: int
    tokens: int
    rounding: float
    findings: Sequence[Finding]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that are wrong."""
        return tuple(one for one in self.findings if one.verdict is Verdict.WRONG)

    def as_dict(self) -> dict[str, Any]:
        """Everything as values that JSON knows; an infinite difference is the text ``inf``."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "findings"}
        found = [
            {name: _written(value) for name, value in vars(one).items()} | {"verdict": one.verdict.value}
            for one in self.findings
        ]
        return {
            **{name: _written(value) for name, value in values.items()},
            "wrong": len(self.wrong),
            "findings": found,
        }


def _written(value: Any) -> Any:
    """A value as JSON takes it, which has no infinite numbers; by such a one scores differ that one side alone rules out."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
