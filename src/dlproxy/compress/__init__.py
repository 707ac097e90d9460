"""Smaller and quicker models: recipes make candidates, and a gate takes those that are shown to pay and to stay right.

Called by cli/compress.py. Not aware of: the server, which serves what comes of this like any other model.
"""


class CompressError(Exception):
    """What stands against it, in a line for the user; the message says what would be right."""
