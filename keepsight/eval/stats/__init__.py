"""Bootstrap intervals and areas under curves."""
