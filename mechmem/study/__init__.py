"""A study of one model over one folder: its settings, its stages, and the program that runs and resumes them."""
