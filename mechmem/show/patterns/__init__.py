"""Attention patterns: a grid of heads, one head, and the text."""
