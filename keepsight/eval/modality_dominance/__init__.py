"""Modality dominance: how much of a model's attention goes to the text and how much to the picture."""
