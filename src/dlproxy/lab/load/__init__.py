"""Load on a server: when requests are sent, what they hold, and what comes back. Run by `dlproxy bench`."""
