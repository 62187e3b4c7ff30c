"""Scorers of hallucination: they take texts and annotations and return figures with confidence intervals.

Nothing in this package imports torch.
"""
