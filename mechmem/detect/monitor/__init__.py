"""A detector at work: scores while a model decodes, and what is done about a row that recites."""
