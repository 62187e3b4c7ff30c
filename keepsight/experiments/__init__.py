"""Experiments: several decoding configurations answer the questions of a benchmark, and a folder keeps every answer."""
