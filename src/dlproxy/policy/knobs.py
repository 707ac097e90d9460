"""The values that steer one lane. config.py describes them and their defaults; KnobsChanged brings new ones at run time."""

from math import inf

from msgspec import Struct


class LaneKnobs(Struct, frozen=True):
    """`max_batch`: rows that a batch never exceeds. `slo_s`: the latency objective, None if the user declared none.

    `max_wait_s`: how long a batch may wait to fill while an instance idles (0: never, the default). `max_batch_s`: how long
    one batch may take at most, whatever the objective allows (set for models that run on the event loop).
    """

    max_batch: int
    max_queue_rows: int
    slo_s: float | None = None
    max_wait_s: float = 0.0
    max_batch_s: float = inf
