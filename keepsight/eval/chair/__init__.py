"""CHAIR: the share of objects named by captions that are not in the pictures."""
