"""The autopilot beside the best static configuration, over random scenarios in virtual time and live."""
