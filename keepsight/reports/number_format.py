"""How numbers are written in tables, pages and figures."""

from __future__ import annotations

MINUS = "−"
"""The typographic minus sign, which is as wide as a plus."""


def percent(rate: float | None) -> str:
    """A fraction in [0, 1] in per cent, with one decimal and without the per cent sign; a dash for None."""
    return "–" if rate is None else f"{100 * rate:.1f}"


def points(change: float | None) -> str:
    """A difference of fractions in percentage points with one decimal, signed unless it rounds to 0.0; a dash for None."""
    return "–" if change is None else signed(100 * change, 1)


def signed(change: float, decimals: int) -> str:
    """A difference with its sign, unless it rounds to zero: a change that rounds to zero has no direction."""
    text = f"{change:+.{decimals}f}"
    return text.replace("-", MINUS) if text.strip("+-0.") else f"{0:.{decimals}f}"
