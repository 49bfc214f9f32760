"""Fixtures and helpers that several stages' tests share."""
