"""Heatmaps with layers, heads, components or tokens as axes."""
