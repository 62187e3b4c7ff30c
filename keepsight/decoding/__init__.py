"""Decoding methods: scores in, scores out. One file per paper."""
