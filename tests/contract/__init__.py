"""Contract suites of dlproxy.testing, run on every implementation."""
