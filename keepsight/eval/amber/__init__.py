"""AMBER: generative and discriminative scores."""
