"""How far the simulator is from the server that it simulates: `python -m benchmarks.fidelity`."""
