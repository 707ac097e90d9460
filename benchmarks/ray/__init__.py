"""dlproxy on Ray: beside Ray Serve, and how tensors get to an actor."""
