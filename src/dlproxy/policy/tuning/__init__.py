"""What turns knobs while a model serves: windows of telemetry in, values of knobs out. Pure."""
