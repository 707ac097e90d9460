"""Tests of the live data plane: the driver on virtual time, replay, the Python API."""
