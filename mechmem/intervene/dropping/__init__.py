"""Unlearning by dropping: units or directions are removed, more and more of them."""
