"""Report on a serving system: response time, throughput, utilisation, scalability, robustness. Run by `dlproxy evaluate`."""
