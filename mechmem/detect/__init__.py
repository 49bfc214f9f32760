"""Noticing, while a model decodes, that it recites memorized text."""
