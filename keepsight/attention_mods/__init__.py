"""Methods that edit attention scores, attention probabilities or head outputs, with one file for each paper."""
