"""Methods that steer hidden states. One file per paper."""
