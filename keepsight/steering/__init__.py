"""Methods that steer hidden states, with one file for each paper."""
