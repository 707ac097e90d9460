"""What several objectives cost each other: fronts of policies of knobs, and of configurations that a genetic search finds."""
