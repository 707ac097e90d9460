"""Pipelines with real weights beside one Python class that does it all, and what a chain costs for each of its stages."""
