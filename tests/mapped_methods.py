"""What each method does on the tiny model of a mapped type: it works, it is refused by name, or something is wrong.

``outcomes("qwen3_vl")`` runs ``keepsight.verification`` with every method of ``SPECS``. The tests and
``benchmarks/families.py`` read the same outcomes.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import mapped

from keepsight import VAR, Method, parse
from keepsight.target import Target
from keepsight.verification import Finding, Verdict, verify_inputs

SPECS = (
    "m3id", "vcd", "pai:first_layer=0", "pai:alpha=0", "vhr", "vsv:rows=all", "vsv:site=mlp", "sla:window=2", "var",
)  # fmt: skip
"""Every method, at settings that a decoder of four layers has room for; ``pai:alpha=0`` is PAI's guidance alone.

VAR acts in every layer that has softmax attention: of four layers its default leaves one, which often has none.
"""
TOKENS = 4
"""How many tokens each run writes."""

TIED = {
    "dots3_note:sparse": "its indexer scores several keys 0 and chooses among them by their place, which padding moves"
}
"""Why rows of a padded batch may differ from rows alone in plain transformers, though they do not on the inputs here."""

PLACED = "put in place"
"""What is refused before a token is written."""
UNMOVED = "large strength differs"
"""What is refused where a method has nothing to do on the inputs."""
CHECKED = frozenset({"off", "negligible strength", UNMOVED, "the model afterwards"})
"""What has to be compared before a method counts as working."""
NEEDS_CALIBRATION = "as given"
"""What VAR refuses on every model without a calibration; its sink dimensions are then given by hand."""


class Result(str, Enum):
    """How all the checks of a method on one model ended."""

    WORKS = "works"
    """Every comparison is exact or within rounding, and at a large strength the scores differ."""
    NO_EFFECT = "no effect"
    """The same, but on these inputs the method changes nothing, and by a second computation it should not."""
    REFUSED = "refused"
    """A named error before a token is written."""
    WRONG = "wrong"
    """A comparison is wrong, or something else than a named error was raised."""


@dataclass(frozen=True)
class Outcome:
    """How one method fared on one model.

    Args:
        reasons: why it is refused, or what is wrong, a clause each.
        left_out: checks of a method that works which could not be run, and why.
        nearest: the largest difference as a share of what rounding explains there; more than 1 would be wrong.
    """

    result: Result
    reasons: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    nearest: float = 0.0


def why_no_batch(name: str) -> str | None:
    """Why methods are not checked in a padded batch of this model; None where they are."""
    return TIED.get(name) or mapped.build(name).why_no_batch


def outcomes(name: str, specs: Sequence[str] = SPECS, tokens: int = TOKENS) -> dict[str, Outcome]:
    """The outcome of each spec on a mapped type, or on ``type:variant``.

    Raises:
        NotBuilt: no tiny model of it can be made.
    """
    built = mapped.build(name)
    placed = {spec: _placed(spec, Target(built.model, built.inputs)) for spec in specs}
    batch = None if why_no_batch(name) else built.batch()
    try:
        report = verify_inputs(built.model, built.inputs, batch, methods=list(placed.values()), tokens=tokens)
    except Exception as error:  # a named one as well: it refuses to verify, and says nothing about a method
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"verification stopped: {type(error).__name__}: {error} ({where.name})"
        return dict.fromkeys(specs, Outcome(Result.WRONG, (reason,)))
    # What is wrong with the plain model says nothing good about any method
    return {
        spec: outcome([one for one in report.findings if one.method in (method.spec, "plain")])
        for spec, method in placed.items()
    }


def _placed(spec: str, target: Target) -> Method:
    """The method of a spec, and VAR in every layer that it can act in."""
    method = parse(spec)
    if spec != "var":
        return method
    layers = sorted(set(range(len(target.layers))) - target.layers_without_attention)
    return VAR(layers=tuple(layers))


def outcome(findings: Sequence[Finding]) -> Outcome:
    """The outcome that the findings of one method amount to."""
    if wrong := [_told(one) for one in findings if one.verdict is Verdict.WRONG]:
        return Outcome(Result.WRONG, tuple(wrong))
    refused = [
        one for one in findings if one.verdict is Verdict.REFUSED and one.compared != NEEDS_CALIBRATION
    ]
    if placed := [one.reason or "" for one in refused if one.compared == PLACED]:
        return Outcome(Result.REFUSED, tuple(placed))
    if missing := CHECKED - {one.compared for one in findings if one.method != "plain"}:
        unproved = "; ".join(one.reason or "" for one in refused)
        return Outcome(Result.WRONG, (f"not checked: {', '.join(sorted(missing))} ({unproved})",))
    left_out = tuple(f"{one.compared}: {one.reason}" for one in refused if one.compared != UNMOVED)
    unmoved = any(one.compared == UNMOVED for one in refused)
    nearest = max(
        (one.difference / one.allowed for one in findings if one.difference and one.allowed), default=0.0
    )
    return Outcome(
        Result.NO_EFFECT if unmoved else Result.WORKS, left_out=left_out, nearest=round(nearest, 2)
    )


def _told(one: Finding) -> str:
    far = "" if one.difference is None else f" differs by {one.difference:.2g}"
    return f"{one.compared}{far}: {one.reason}"
