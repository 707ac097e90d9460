"""Batches and how long they took: from a CSV file, from a recording, or made up. Called by training.py and benchmarks/learn.

Not aware of: what is learnt from them.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.policy.events import BatchDone, Dispatch
from dlproxy.telemetry.event_log import LogError, read

Numbers = NDArray[np.float64]
SECONDS = "seconds"
MADE_UP = 3000


class Times(Struct, frozen=True):
    """`features` [batches, names]: `rows` and `length` are what the fitted cost knows, the others it does not; `seconds`."""

    names: tuple[str, ...]
    features: Numbers
    seconds: Numbers

    def column(self, name: str) -> Numbers:
        """Or the product of several, as in length*share; ones, if there is none of a name."""
        places = [self.names.index(one) for one in name.split("*") if one in self.names]
        found: Numbers = self.features[:, places].prod(axis=1)
        return found

    def part(self, since: float, until: float) -> "Times":
        """From one share of the batches to another."""
        places = slice(round(since * len(self.seconds)), round(until * len(self.seconds)))
        return Times(self.names, self.features[places], self.seconds[places])


def times_of(path: Path) -> Times:
    """A recording (.dlog), or a CSV file with a column `seconds` and others of numbers. Raises LearnError."""
    try:
        if path.suffix == ".dlog":
            rows = list(_recorded(path))
            return Times(("rows", "length"), np.array([row[:2] for row in rows]), np.array([row[2] for row in rows]))
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = [line for line in csv.reader(file) if line]
            table = np.array([[float(value) for value in line] for line in lines])
    except (OSError, UnicodeDecodeError, csv.Error, LogError, ValueError, IndexError) as error:
        raise LearnError(f"{path}: {error}") from error
    if SECONDS not in head or len(head) < 2 or table.ndim != 2 or table.shape[1] != len(head):
        raise LearnError(f"{path}: give a column '{SECONDS}', others that it may depend on, such as rows, and numbers below")
    place = head.index(SECONDS)
    if not (np.isfinite(table).all() and (table[:, place] > 0.0).all()):
        raise LearnError(f"{path}: every number must be finite, and seconds above 0")
    names = tuple(name for name in head if name != SECONDS)
    return Times(names, np.delete(table, place, axis=1), table[:, place])


def write(times: Times, path: Path) -> None:
    """As times_of reads it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*times.names, SECONDS])
        writer.writerows(np.column_stack([times.features, times.seconds]).tolist())


def made_up(seed: int = 0, count: int = MADE_UP) -> Times:
    """Of a model whose time depends on what it is given: rows, length, and the share of a row that needs work."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 17, count).astype(np.float64)
    length = np.exp(random.uniform(np.log(8), np.log(256), count)).round()
    share = random.beta(1.0, 2.0, count)
    seconds = 1e-3 + 2e-5 * rows * length * (0.1 + 2.0 * share**2)
    return Times(
        ("rows", "length", "share"), np.column_stack([rows, length, share]), seconds * random.lognormal(0.0, 0.1 + 0.2 * share)
    )


def _recorded(path: Path) -> Iterator[tuple[float, float, float]]:
    """(rows, length of the longest, seconds) of the batches that gave answers."""
    _, entries = read(path)
    running: dict[int, tuple[float, float]] = {}
    for entry in entries:
        if isinstance(entry.event, BatchDone) and entry.event.batch_id in running:
            rows, length = running.pop(entry.event.batch_id)
            if entry.event.error is None:
                yield rows, length, max(entry.event.service_s, 1e-9)
        for command in entry.commands:
            if isinstance(command, Dispatch):
                rows = sum([ticket.rows for ticket in command.tickets])
                running[command.batch_id] = (float(rows), float(max([ticket.length for ticket in command.tickets])))
