"""AMBER: scores of descriptions of pictures and of answers to yes-or-no questions about them."""
