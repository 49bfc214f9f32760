"""Models whose memories were put in on purpose, so that the right answer is known."""
