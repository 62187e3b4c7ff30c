"""Each method at a strength that changes tokens even on random weights: a test in which nothing happens proves nothing."""

from __future__ import annotations

from typing import Any

from families import BREAK, END

from sightline import M3ID, VCD

STRONG: dict[str, Any] = {
    # Mistral 3 lays row separators between the pieces of a picture that only its processor knows
    "m3id": M3ID(decay=0.7, cutoff=0.0, also_drop=(BREAK, END)),
    "vcd": VCD(alpha=4.0, beta=0.0, noise_step=999),
}
