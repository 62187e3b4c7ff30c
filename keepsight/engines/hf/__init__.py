"""The engine for models of transformers: parts put in place around ``generate``."""
