"""Networks that are trained here: reference ones, and those that forecast load, watch telemetry and turn knobs."""
