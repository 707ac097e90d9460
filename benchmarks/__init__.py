"""Benchmarks of dlproxy against the least that a Python server, nginx and ONNX Runtime itself can do."""
