"""Each method at a strength that changes tokens even on random weights: a test in which nothing happens proves nothing."""

from __future__ import annotations

from typing import Any

from families import BREAK, END

from keepsight import M3ID, PAI, SLA, VAR, VCD, VHR, VSV

STRONG: dict[str, Any] = {
    # Mistral 3 lays row separators between the pieces of a picture that only its processor knows
    "m3id": M3ID(decay=0.7, cutoff=0.0, also_drop=(BREAK, END)),
    "pai": PAI(alpha=8.0, gamma=4.0, first_layer=0),
    "sla": SLA(gamma=0.8, window=1),
    # Random weights have no sinks of their own: a low threshold on one dimension makes about half of the tokens sinks
    "var": VAR(fraction=1.0, ratio=0.0, mass=0.0, tau=0.6, dims=(5,), layers=(0, 1)),
    "vcd": VCD(alpha=4.0, beta=0.0, noise_step=999),
    "vhr": VHR(alpha=6.0, layers=(0, 1)),
    "vsv": VSV(strength=3.0),
}
