"""Public fakes and contract suites, for dlproxy's own tests and for those of whoever extends it."""
