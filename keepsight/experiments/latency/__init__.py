"""Measures what a method costs: prefill, time per token and memory over plain ``generate``, alternating in one run."""
