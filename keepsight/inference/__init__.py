"""Loading models and generating answers."""
