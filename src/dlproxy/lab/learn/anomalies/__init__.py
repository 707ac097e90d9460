"""Detectors of faults in telemetry, trained and compared on scenarios of the simulator."""
