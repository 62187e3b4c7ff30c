"""Figures, tables and HTML pages that show results."""
