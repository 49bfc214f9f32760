"""Probes: what tells recitation from a step's features, how sure it is, and when it raises an alarm."""
