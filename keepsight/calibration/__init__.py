"""Files of constants that a method needs of one checkpoint."""
