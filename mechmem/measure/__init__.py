"""How well a model reproduces paragraphs."""
