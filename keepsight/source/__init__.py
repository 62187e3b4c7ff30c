"""Makes model inputs from pictures and messages."""
