"""Decides whether a candidate is taken: it must pay, and lose no more than is allowed. Pure.

Called by search.py with what was measured. Not aware of: how anything was measured, which recipe a candidate is of.
"""

from typing import Literal

from msgspec import Struct


class Speed(Struct, frozen=True):
    """Of one batch size, original and candidate measured in turns. Medians in seconds; `ratio`: how many times as quick the
    candidate is, with the ends of its 95 % interval.
    """

    rows: int
    original_s: float
    candidate_s: float
    ratio: float
    low: float
    high: float


class Accuracy(Struct, frozen=True):
    """On the same held-out examples. `loss`: original less candidate, `low` and `high` the ends of its 95 % interval (paired
    bootstrap). `agreement`: the share of examples to which both answer alike. `worst_class`: the label that lost the most and
    how much, where labels are classes.
    """

    metric: str
    examples: int
    original: float
    candidate: float
    loss: float
    low: float
    high: float
    agreement: float
    worst_class: tuple[str, float] | None = None


class Footprint(Struct, frozen=True):
    """What a model takes. `memory_bytes`: resident memory of a process with it and a batch of the larger size, less that of
    one without it.
    """

    file_bytes: int
    load_s: float
    memory_bytes: int


class Measured(Struct, frozen=True):
    """All that is known of a candidate. `speeds`: of batch 1 and of the larger batch."""

    accuracy: Accuracy
    speeds: tuple[Speed, ...]
    original: Footprint
    candidate: Footprint


class Bar(Struct, frozen=True, kw_only=True):
    """What is asked of a candidate. `most_loss`: of the metric, in its own unit. `least_ratio`: at every batch size, unless
    `most_file_bytes` or `most_memory_bytes` is asked for, which then are what has to be met and speed need only be kept.
    """

    most_loss: float = 0.01
    least_ratio: float = 1.15
    most_file_bytes: int = 0
    most_memory_bytes: int = 0


class Verdict(Struct, frozen=True):
    """`reasons`: why it is refused, in words; of one that is taken, why it is."""

    status: Literal["accepted", "refused"]
    reasons: list[str]
