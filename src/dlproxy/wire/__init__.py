"""Bytes to messages and back. `NAME_codec.py` is sans-I/O, `NAME_http.py` routes; endpoint.py serves all protocols."""
