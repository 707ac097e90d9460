"""A thousand nodes and a million requests a second, in virtual time: see `__main__.py`."""
