"""dlproxy beside other inference servers, each from its own virtual environment: `python -m benchmarks.peers`.

A peer is one file NAME_app.py, the server program, and one entry in registry.py.
"""

MAX_BATCH = 64
