"""The control port: metrics, state, knobs, and the page to try requests."""
