"""The result cache: answers that were given before, and requests that join one under way; what is kept, policy/caching says."""
