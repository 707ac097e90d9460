"""A driver over remote instances, and clients that ask it without a pause."""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from time import monotonic

import msgspec

from dlproxy.instance.remote import RemoteInstance
from dlproxy.message import Failure, Request, Response, Signature, Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.stats import ModelStats


class RemoteLane:
    """Wired as serve/assemble.py has to wire remote instances."""

    def __init__(self, signature: Signature) -> None:
        self.lane = Lane(LaneKnobs(max_batch=16, max_queue_rows=1000))
        self.driver = Driver(
            model="m", version="1", signature=signature, lane_on=self.lane.on, stats=ModelStats(), clock=monotonic
        )

    def add(self, instance: RemoteInstance) -> None:
        instance.on_lost = partial(self.driver.lose_instance, instance.name)
        instance.on_up = partial(self.driver.add_instance, instance)
        if instance.up:
            self.driver.add_instance(instance)


class Flood:
    """So many clients, each of which asks again as soon as it was answered. `check` raises for a wrong answer."""

    def __init__(
        self, lane: RemoteLane, make: Callable[[], Request], check: Callable[[Request, Response], None], *, clients: int
    ) -> None:
        self.answers = 0
        self.failures: list[Failure] = []
        self.stopping = False
        self.lane, self.make, self.check = lane, make, check
        self.numbers = count(1)
        self._asking = clients
        self._ended = asyncio.Event()
        for _ in range(clients):
            _Client(self).ask()

    async def stop(self) -> None:
        """Ask no more; returns once all were answered."""
        self.stopping = True
        await self._ended.wait()

    def leave(self) -> None:
        self._asking -= 1
        if not self._asking:
            self._ended.set()


class _Client:
    def __init__(self, flood: Flood) -> None:
        self.flood = flood

    def ask(self) -> None:
        made = self.flood.make()
        shape_key = tuple(made.inputs[0].shape[1:])
        ticket = Ticket(next(self.flood.numbers), monotonic(), rows=made.ticket.rows, shape_key=shape_key)
        self.request = msgspec.structs.replace(made, ticket=ticket)
        self.flood.lane.driver.submit(self.request, self)

    def completed(self, response: Response) -> None:
        self.flood.check(self.request, response)
        self.flood.answers += 1
        self._next()

    def failed(self, failure: Failure) -> None:
        self.flood.failures.append(failure)
        self._next()

    def _next(self) -> None:
        if self.flood.stopping:
            self.flood.leave()
        else:
            asyncio.get_running_loop().call_soon(self.ask)  # else a failure at once would recurse
