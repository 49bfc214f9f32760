"""Paragraphs, corpora and the synthetic corpus: everything that exists before a model is loaded."""
