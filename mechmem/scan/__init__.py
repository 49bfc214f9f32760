"""A corpus of any size to scored paragraphs on disk."""
