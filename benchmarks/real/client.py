"""Closed loop of `dlproxy bench` with requests of any form: `python -m benchmarks.real.client PORT REQUESTS --connections 16`.

REQUESTS is a MessagePack list of whole HTTP requests, sent in turn. Prints one line of JSON, as ort_loop.py does. The rate is
that of the answers after the first round of them, so that a run cut in the middle of a batch gains and loses nothing.
"""

import argparse
import gc
import json
import sys
from array import array
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from socket import AF_INET
from time import monotonic

import msgspec
import numpy as np

from dlproxy.lab.load.connection import Connection
from dlproxy.lab.load.generator import ClosedLoop

HOST = "127.0.0.1"
DRAIN_S = 30.0
LEAST_ROUNDS = 2  # for a rate between rounds; fewer are counted over the whole time


class CountingLoop(ClosedLoop):
    """A closed loop that notes when each request was answered."""

    answered_at: array  # type: ignore[type-arg]

    def answered(self, connection: Connection, now: float) -> None:
        self.answered_at.append(now)
        super().answered(connection, now)


def steady_rate(answered_at: Sequence[float], from_at: float, until_at: float, round_size: int) -> tuple[float, float]:
    """Answers a second, and over how many seconds: from the end of the first round within the time to the last answer.

    Where there are too few rounds for that it is too low by what was under way. Raises ValueError without any answer.
    """
    times = np.asarray(answered_at)
    times = times[(times >= from_at) & (times <= until_at)]
    if not times.size:
        raise ValueError(f"no answer to {round_size} clients in {until_at - from_at:.1f} s: measure longer")
    if times.size < LEAST_ROUNDS * round_size:
        return times.size / (until_at - from_at), until_at - from_at
    seconds = float(times[-1] - times[round_size - 1])
    return float(times.size - round_size) / seconds, seconds


def measure(port: int, requests: Sequence[bytes], connections: int, seconds: float, warm_up: float) -> dict[str, float]:
    """Raises ValueError if a request failed."""
    loop = CountingLoop(
        (AF_INET, (HOST, port)), cycle(requests), lambda _: None, connections=connections, drain_s=DRAIN_S, objective_s=None
    )
    loop.answered_at = array("d")
    loop.connect()
    gc.freeze()
    start_at = monotonic()
    outcome = loop.run(start_at, warm_up, seconds)
    if outcome.tally.errors:
        said = "; ".join(f"{count} x {kind} {outcome.said.get(kind, '')}" for kind, count in outcome.tally.errors.items())
        raise ValueError(f"requests failed: {said}")
    from_at = start_at + warm_up
    rate, measured_s = steady_rate(loop.answered_at, from_at, from_at + seconds, connections)
    latency_ms = outcome.tally.latency_ms
    return {
        "requests_per_s": rate,
        "p50_ms": latency_ms["p50"],
        "p99_ms": latency_ms["p99"],
        "requests": outcome.tally.ok,
        "seconds": measured_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Send requests in a closed loop and print their rate.")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    arguments = parser.parse_args()
    requests = msgspec.msgpack.decode(arguments.requests.read_bytes(), type=list[bytes])
    try:
        figures = measure(arguments.port, requests, arguments.connections, arguments.seconds, arguments.warm_up)
    except ValueError as error:
        print(error)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
