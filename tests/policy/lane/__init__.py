"""The lane as a whole: scripts of events, and a machine that checks the invariants."""
