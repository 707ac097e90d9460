"""Counters, the metrics page, and the event log."""
