"""Models in worker processes and on other servers: what breaks harms nobody, and what the way to them costs."""
