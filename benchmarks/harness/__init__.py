"""What all benchmarks share: options, servers and loads, an interruptible run, figures against their goals, pages."""
