"""Autoscalers beside each other on one simulated day: what they cost in instances, and what misses the objective."""
