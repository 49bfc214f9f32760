"""Attacks on an edited model, one a file: is the text gone, or only hidden?"""
