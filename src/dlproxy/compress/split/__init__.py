"""A model in parts: stages of a pipeline, and shares of a large product side by side, cut where measured times say.

Called by cli/split.py. Not aware of: the server, which serves what comes of this like any other pipeline.
"""

ROWS = "rows"  # of the axis that counts them, in the files of parts

__all__ = ["ROWS"]
