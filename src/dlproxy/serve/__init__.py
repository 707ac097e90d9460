"""The live data plane: drives lanes from the event loop, puts the parts together, offers them as a server or as a library."""
