"""One process of a load test: `python -m dlproxy.lab.load.worker FD`, where FD is a pipe that run.py holds the other end of.

It is told a Plan, answers when it is ready, is told the start, tells its progress and at last its Outcome. Whatever is
written to the pipe after the start, or its end, stops the load. Not aware of: other processes, reports.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from selectors import EVENT_READ
from typing import Any

from msgspec import Struct

from dlproxy.lab.load import payload
from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.load.connection import Tls
from dlproxy.lab.load.generator import ClosedLoop, Load, OpenLoop
from dlproxy.lab.load.settings import LoadError, Settings
from dlproxy.lab.load.target import Model

READY = "ready"
_PR_SET_TIMERSLACK = 29


class Plan(Struct):
    """All that a process needs to know. `index`: which of the processes it is; `path`, `host`: of the infer requests.

    `tls_name`: whose certificate the server must show; empty for plain HTTP.
    """

    settings: Settings
    model: Model
    open_size: int
    address: tuple[int, Any]
    path: str
    host: str
    index: int
    tls_name: str = ""


def share(stream: Arrivals, until_s: float, index: int, processes: int) -> Iterator[float]:
    """Every so manieth instant of a stream: the processes' shares together are exactly the stream."""
    first = index
    for chunk in stream.chunks(until_s):
        yield from chunk[first::processes].tolist()
        first = (first - chunk.size) % processes


def portion(total: int, index: int, processes: int) -> int:
    """This process's part of a number that is divided as evenly as it can be."""
    return total // processes + (index < total % processes)


def make_load(plan: Plan, tell: Any) -> Load:
    """The loop that a plan describes, with all requests made. Raises LoadError."""
    settings, index = plan.settings, plan.index
    made = [
        payload.whole_request(
            plan.path, plan.host, payload.encode(settings.protocol, sample, settings.deadline_s, settings.headers)
        )
        for sample in payload.samples(plan.model, settings, plan.open_size)
    ]
    requests = map(made.__getitem__, payload.in_order(len(made), settings, index))
    total = settings.max_connections if settings.open_loop else settings.concurrency
    assert total is not None
    options: dict[str, Any] = {
        "connections": portion(total, index, settings.processes),
        "drain_s": settings.drain_s,
        "objective_s": settings.objective_s,
        "tls": Tls(settings.tls, plan.tls_name) if plan.tls_name else None,
    }
    if not settings.open_loop:
        return ClosedLoop(plan.address, requests, tell, **options)
    stream = settings.stream()
    instants = share(stream, settings.ramp_s + settings.length_s, index, settings.processes)
    return OpenLoop(instants, stream.rate / settings.processes, plan.address, requests, tell, **options)


def main(pipe: Connection) -> None:
    """Serve one plan. Returns early if the other end has gone."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        plan: Plan = pipe.recv()
        try:
            wake_in_time()
            allow_connections()
            load = make_load(plan, pipe.send)
            load.selector.register(pipe, EVENT_READ, lambda mask: load.stop())
            load.connect()
            load.selector.unregister(pipe)
            gc.collect()
            gc.freeze()
            pipe.send(READY)
            start_at: float = pipe.recv()
            load.selector.register(pipe, EVENT_READ, lambda mask: _stop(load, pipe))
            pipe.send(load.run(start_at, plan.settings.ramp_s, plan.settings.length_s))
        except (LoadError, MemoryError) as error:
            pipe.send(LoadError(str(error) or "the requests do not fit into memory; lower --keys"))


def _stop(load: Load, pipe: Connection) -> None:
    load.selector.unregister(pipe)
    load.stop()


def wake_in_time() -> None:
    """Linux wakes a sleeper up to 50 us late, to save power; ask it not to."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def allow_connections() -> None:
    """As many open files as the system lets us have."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
