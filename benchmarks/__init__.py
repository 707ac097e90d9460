"""Benchmarks of dlproxy against the least that a Python server, nginx and ONNX Runtime itself can do."""

import os

# Every server that is measured, and the measuring itself, without reports to anybody: dlproxy's TELEMETRY_OFF,
# written out: the peers' environments, which import this too, have no dlproxy.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
