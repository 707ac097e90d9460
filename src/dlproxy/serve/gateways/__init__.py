"""Several processes behind one port, each with an event loop and lanes of its own, and one that keeps them and sums them up."""
