"""Decoding methods: scores in, scores out. One file per paper; ``__all__`` is the list of methods."""

from sightline.decoding.m3id import M3ID
from sightline.decoding.vcd import VCD

__all__ = ["M3ID", "VCD"]
