"""What happens inside a model while it answers: attention, sinks, text dominance, and which methods run."""
