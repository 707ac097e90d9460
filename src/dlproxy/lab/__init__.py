"""Experiments: they use the server, the server never imports them."""
