"""What tells that something is unusual with a model: windows of telemetry in, an alarm out; answers compared."""
