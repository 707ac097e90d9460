"""Results of a load or a simulation: what is kept of a run (result.py), and how a person reads it."""
