"""Benchmarks of dlproxy against the least that a Python server, nginx and ONNX Runtime itself can do."""

import os

from dlproxy.instance.runtime import TELEMETRY_OFF

os.environ.setdefault(*TELEMETRY_OFF)  # every server that is measured, and the measuring itself, without reports to anybody
