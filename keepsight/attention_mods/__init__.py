"""Methods that edit attention: scores, probabilities or head outputs. One file per paper."""
