"""Bytes to messages and back. `<protocol>_codec.py` is sans-I/O, `<protocol>_http.py` routes; endpoint.py serves them all."""
