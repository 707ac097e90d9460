"""Bytes to messages and back. `<protocol>_codec.py` is sans-I/O, `<protocol>_http.py` routes; endpoint.py is the same for all."""
