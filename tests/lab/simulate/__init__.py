"""The simulator: as exact as the live driver, sound under faults, deterministic, and polite on the command line."""
