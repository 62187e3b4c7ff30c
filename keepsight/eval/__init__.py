"""Scorers of hallucination: text and annotations in, numbers with intervals out. No torch in here."""
