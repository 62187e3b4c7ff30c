"""BEAF: answers before and after an object is taken out of a picture."""
