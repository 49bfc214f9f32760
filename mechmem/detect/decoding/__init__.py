"""Decoding texts step by step, so that features can be read."""
