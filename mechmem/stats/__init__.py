"""Intervals, tests and matched controls for paragraphs that are not independent."""
