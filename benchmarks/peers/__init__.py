"""dlproxy beside other inference servers, each from its own virtual environment: `python -m benchmarks.peers`.

A peer is one file NAME_app.py, the server program, and one entry in registry.py.
"""

import os

MAX_BATCH = int(os.environ.get("PEER_BATCH", "64"))
WORKERS = int(os.environ.get("PEER_WORKERS", "1"))
