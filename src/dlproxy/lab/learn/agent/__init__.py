"""The agent: where it learns (a simulator, and a problem whose optimum is known), how, and what its network is exported as."""
