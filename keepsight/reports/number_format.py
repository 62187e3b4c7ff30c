"""How figures are written in tables and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


MINUS = "−"


def percent(rate: float | None) -> str:
    """A fraction in per cent with one decimal, or a dash where there is none."""
    return "–" if rate is None else f"{100 * rate:.1f}"


def points(change: float | None) -> str:
    """A difference of fractions in percentage points, signed."""
    if change is None:
        return "–"
    text = f"{100 * change:+.1f}"
    return text.replace("-", MINUS) if text.strip("+-0.") else "0.0"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
