"""What a method costs: prefill, time per token and memory over plain ``generate``, measured alternately in one run."""
