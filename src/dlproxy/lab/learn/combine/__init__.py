"""What several networks, or several tasks, give together: ensembles, transfer, heads on one trunk."""
