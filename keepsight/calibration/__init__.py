"""Calibration files: constants of one checkpoint that a method needs."""
