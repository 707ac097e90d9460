"""The production lanes in virtual time: `dlproxy simulate` and the tuner's experiments."""
