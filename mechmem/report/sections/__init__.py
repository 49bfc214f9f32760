"""The report's sections: each a question, its answer from a study's numbers, and the figures behind it."""
