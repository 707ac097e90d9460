"""Tuning ahead of time: one model's configuration for a load (search/), which copies run on which nodes (placement/)."""
