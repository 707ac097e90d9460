"""dlproxy in front of another model server: what the way through it costs, and what its batching gains."""
