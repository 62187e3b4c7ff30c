"""CHAIR: objects that a caption names and the picture does not hold."""
