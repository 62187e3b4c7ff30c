"""Runs: a bench of questions, a model, several ways of decoding, and a folder of answers that survives being killed."""
