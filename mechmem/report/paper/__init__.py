"""Figures of the repeated study: on its page, and one file each for a talk."""
