"""Several processes behind one port, each with its own event loop and lanes, and one that keeps them and sums up what they do."""
