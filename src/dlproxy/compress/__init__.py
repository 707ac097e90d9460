"""Smaller and quicker models: recipes make candidates, and a gate takes those that are shown to pay and to stay right.

Called by cli/compress.py and cli/cascade.py. Not aware of: the server, which serves what comes of this like any other model.
"""

from pathlib import Path


class CompressError(Exception):
    """What stands against it, in a line for the user; the message says what would be right."""


def record_path(artifact: Path) -> Path:
    """Where the record of an artifact is (manifest.py)."""
    return Path(f"{artifact}.json")
