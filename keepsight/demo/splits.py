"""The splits of the demo world, and the settings that were chosen on its validation split."""

from __future__ import annotations

from keepsight.errors import InputError, did_you_mean

DEFAULT_METHODS = ("vcd:beta=0.02,noise_step=999", "m3id:decay=0.07,cutoff=0.02")
"""The methods that ``keepsight demo`` compares with greedy search. Their settings were chosen on ``val-shifted``."""
SPLITS = {
    "test": "held-out pictures that follow the habits of the training world",
    "test-shifted": "held-out pictures in which what usually comes along is mostly absent, so that habit misleads",
    "val": "the pictures that settings are chosen on, drawn like test",
    "val-shifted": "the pictures that settings are chosen on, drawn like test-shifted",
}
"""The splits that a comparison may use, each with a description.

``train`` and ``train-mixed`` are left out, because the model has seen their pictures in training.
"""


class UnknownSplit(InputError):
    """The demo world has no such split to report on."""


def check_split(split: str) -> str:
    """``split`` itself, if it is one of ``SPLITS``.

    Raises:
        UnknownSplit: it is another name; the message shows the nearest ones.
    """
    if split not in SPLITS:
        raise UnknownSplit(f"no split {split!r}: {did_you_mean(split, SPLITS)}")
    return split
