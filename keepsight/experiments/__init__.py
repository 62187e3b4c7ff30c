"""Runs: several ways of decoding answer the questions of a benchmark, and every answer is kept in a folder."""
