"""How a request of many rows is split into parts, and how many rows it may have. Used where it is served and simulated.

Not aware of: tensors, which requests can be split at all, how their answers are put together (serve/partition.py).
"""

from collections.abc import Iterator

import msgspec

from dlproxy.config.knobs import LaneSettings, ModelConfig
from dlproxy.message import Ticket


def parts(rows: int, part_rows: int) -> list[int]:
    """As few as can be, and as equal as can be: the largest one decides when the answer is there."""
    count = -(-rows // part_rows)
    size, larger = divmod(rows, count)
    return [size + 1] * larger + [size] * (count - larger)


def split(whole: Ticket, part_rows: int, ids: Iterator[int]) -> list[Ticket]:
    """The tickets of its parts, each under its terms. The first has its id, the others the next of `ids`."""
    return [
        msgspec.structs.replace(whole, id=next(ids) if number else whole.id, rows=rows, part_of=whole.id, whole_rows=whole.rows)
        for number, rows in enumerate(parts(whole.rows, part_rows))
    ]


def part_size(knobs: LaneSettings) -> int:
    """Rows that a part has at most."""
    return min(knobs.part_rows or knobs.max_batch, knobs.max_batch)


def most_rows(config: ModelConfig, *, splits: bool) -> int:
    """Rows that a request may have, where larger ones than a batch can be split and where they cannot."""
    if splits:
        return config.max_request_rows or max(config.max_queue_rows, config.max_batch)
    return min(config.max_request_rows or config.max_batch, config.max_batch)
